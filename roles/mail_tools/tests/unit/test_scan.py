"""What delivery, quarantine and signatures promise, where no host is needed to see it."""

from __future__ import annotations

import io
import os
from functools import partial
from types import SimpleNamespace

import pytest
from letterlock import age, judged, lmtp_front, notice, quarantine, signatures
from letterlock.clamd import MALWARE, UNREADABLE, Unavailable, judge


def received(text: bytes, most: int = 1 << 20) -> bytes:
    """Return what the front makes of *text*, which it reads up to its end and no further."""
    stream, message = io.BytesIO(text + b"NOOP\r\n"), io.BytesIO()
    try:
        lmtp_front.receive(stream, message, most)
    finally:
        assert stream.read() == b"NOOP\r\n"
    return message.getvalue()


@pytest.mark.parametrize(("sent", "kept"), [
    (b"Subject: x\r\n\r\nbody\r\n.\r\n", b"Subject: x\r\n\r\nbody\r\n"),
    (b"a: b\r\n\r\n..dot\r\n.x\r\n.\r\n", b"a: b\r\n\r\n.dot\r\nx\r\n"),
    # Neither a lone LF nor a lone CR ends a message, and no line is left that Dovecot could read as an end.
    (b"a: b\n\nx\n.\nMAIL FROM:<>\r\n.\r\n", b"a: b\r\n\r\nx\r\n\r\nMAIL FROM:<>\r\n"),
    (b"a: b\r\n\r\nx\r.\ry\r\n.\r\n", b"a: b\r\n\r\nx\r.\ry\r\n"),
    # The lone LF's line is an empty one; the dot alone on the next ends the message.
    (b"\r\n.\n.\r\n", b"\r\n\r\n"),
    # A header field of the kit's own name, folded, in any case; the body is the sender's.
    (b"X-Letterlock-Scan: no\r\n more\r\nA: b\r\n\r\nX-Letterlock-Scan: y\r\n.\r\n", b"A: b\r\n\r\nX-Letterlock-Scan: y\r\n"),
    (b".\r\n", b""),
])
def test_what_is_received(sent, kept):
    """Line by line, up to CRLF.CRLF."""
    assert received(sent) == kept


def test_a_line_longer_than_what_is_read_at_once():
    """Its pieces are put together, whatever stands at their edges."""
    edge = lmtp_front.LONGEST_LINE
    for filler in (edge - 2, edge - 1, edge, edge + 1):
        line = b"y" * filler
        assert received(b"\r\n" + line + b"\r\n.z\r\n.\r\n") == b"\r\n" + line + b"\r\nz\r\n"
        # A dot after such an edge is not at a line's beginning.
        assert received(b"\r\n" + line + b".\r\nx\r\n.\r\n") == b"\r\n" + line + b".\r\nx\r\n"


def test_a_message_that_is_too_large_is_read_to_its_end():
    """Its end is found, so that the next command is understood."""
    with pytest.raises(lmtp_front.Full):
        received(b"a: b\r\n\r\n" + b"x" * 200 + b"\r\n.\r\n", 100)


def test_a_client_that_leaves_has_delivered_nothing():
    """Without the line of one dot there is no message."""
    with pytest.raises(lmtp_front.Gone):
        lmtp_front.receive(io.BytesIO(b"a: b\r\n\r\nhalf"), io.BytesIO(), 100)


@pytest.mark.parametrize(("recipient", "account"), [
    (b"<ada@example.org>", "ada@example.org"), (b" <Ada+x+y@EXAMPLE.org> NOTIFY=NEVER", "ada@example.org"),
    (b'<"ada"@example.org>', "ada@example.org"), ("<grüße@example.org>".encode(), "grüße@example.org"),
])
def test_the_account_of_a_recipient(recipient, account):
    """As Dovecot delivers it."""
    assert lmtp_front.account_of(recipient) == account


@pytest.mark.parametrize(("answer", "kind", "signature"), [
    ("stream: Win.Test.EICAR_HDB-1 FOUND", MALWARE, "Win.Test.EICAR_HDB-1"), ("stream: Own.UNOFFICIAL FOUND", MALWARE, "Own"),
    ("stream: Heuristics.Encrypted.Zip FOUND", UNREADABLE, "Heuristics.Encrypted.Zip"),
    ("stream: Heuristics.Limits.Exceeded.MaxScanSize FOUND", UNREADABLE, "Heuristics.Limits.Exceeded.MaxScanSize"),
    ("INSTREAM size limit exceeded. ERROR", UNREADABLE, "StreamMaxLength"),
])
def test_verdicts(answer, kind, signature):
    """As clamd words them."""
    assert (judge(answer).kind, judge(answer).signature) == (kind, signature)


@pytest.mark.parametrize("answer", ["", "stream: Can't allocate memory ERROR", "UNKNOWN COMMAND", "OK"])
def test_what_is_no_verdict(answer):
    """Is never taken for one."""
    with pytest.raises(Unavailable):
        judge(answer)


def test_a_hash_does_not_depend_on_line_ends():
    """What was sealed with CRLF and is stored with LF is the same message, wherever a block ends."""
    lines = [b"a" * 70] * 40_000
    assert quarantine.hash_of(io.BytesIO(b"\r\n".join(lines)))[0] == quarantine.hash_of(io.BytesIO(b"\n".join(lines)))[0]
    assert quarantine.hash_of(io.BytesIO(b"a\rb"))[0] != quarantine.hash_of(io.BytesIO(b"a\nb"))[0]


def test_a_fingerprint_is_that_of_the_message_alone():
    """As it came, as Dovecot stored it, and delivered once more by another way; but not with another header or body."""
    came = b"Received: by a\r\n\tfor b\r\nFrom: x\r\nReceived: inner\r\n\r\nbody\r\n"
    stored = b"Return-Path: <>\nDelivered-To: c\nReceived: by d\n (e)\nReceived: by a\n\tfor b\nFrom: x\nReceived: inner\n\nbody\n"
    found = {quarantine.fingerprint_of(io.BytesIO(text)) for text in (came, stored, came.replace(b"by a", b"by z"))}
    assert len(found) == 1
    for other in (came.replace(b"From", b"To"), came.replace(b"inner", b"other"), came + b"x"):
        assert quarantine.fingerprint_of(io.BytesIO(other)) not in found
    assert quarantine.fingerprint_of(io.BytesIO(b"")) == quarantine.fingerprint_of(io.BytesIO(b"Received: x\n"))


def test_an_item_that_can_not_be_sealed_leaves_nothing(tmp_path, monkeypatch):
    """Neither file nor record: what it was to hold is not answered for."""
    monkeypatch.setattr(age, "ENVIRONMENT", {"PATH": str(tmp_path)})
    kept = quarantine.Quarantine(["age1x"], tmp_path / "quarantine")
    with (tmp_path / "message").open("w+b") as message, pytest.raises((OSError, age.NotSealed)):
        kept.put(quarantine.Item("a@b", "malware", "x", "gate", 1, "0", "0"), message)
    assert [path for path in (tmp_path / "quarantine").rglob("*") if path.is_file()] == []


def test_an_item_is_named_by_its_identity_alone(tmp_path):
    """No path leads out of the quarantine."""
    (tmp_path / "other.json").write_text("{}")
    kept = quarantine.Quarantine([], tmp_path / "quarantine")
    for name in ("../other", "other", "*", ""):
        with pytest.raises(KeyError):
            kept.item(name)


def test_a_notice_shows_words_and_no_more():
    """Headers of malware are written into the notice as one plain line each, and start no field of their own."""
    item = quarantine.Item("ada@b", "malware", "Test.X", "gate", 1, "0", "0")
    bad = b"From: =?utf-8?q?Eve=0D=0ABcc:_x@y?= <e@f>\r\nSubject: =?x-none?q?y?= " + b"z" * 500 + b"\r\n\r\nsecret body\r\n"
    made = notice.notice(item, io.BytesIO(bad), sender="P <p@b>", subject="Held: $subject $nothing", text="$sender|$date|$signature\n")
    head, _, body = made.partition(b"\r\n\r\n")
    assert b"\r\nBcc" not in head
    assert b"secret" not in made
    assert b"Auto-Submitted: auto-generated" in head
    assert b"Eve Bcc: x@y" in body
    assert b"(none)|Test.X" in body


def test_the_files_that_are_in_force(tmp_path):
    """Databases by their names, the operator's before the distributor's; nothing else, and nothing of the kit's own name."""
    first, second = tmp_path / "a", tmp_path / "b"
    for directory, names in ((first, ["main.cvd", "x.ndb", "mirrors.dat"]), (second, ["x.ndb", "y.yara", ".new", signatures.OWN])):
        directory.mkdir()
        for name in names:
            (directory / name).write_text(name)
    found = signatures.files_of([first, second, tmp_path / "none"])
    assert found == {"main.cvd": first / "main.cvd", "x.ndb": second / "x.ndb", "y.yara": second / "y.yara"}
    before = signatures.identity_of(found)
    (second / "y.yara").write_text("other")
    assert signatures.identity_of(found) != before


def test_what_changes_meanwhile_is_followed(tmp_path, monkeypatch):
    """A database that comes while others are brought into force is, too; a source without a rest is left to the timer."""
    source, rounds = tmp_path / "source", []
    source.mkdir()
    followed = signatures.Signatures(SimpleNamespace(sources=[source]))

    def bring_into_force(*, restless: bool) -> bool:
        rounds.append(sorted(signatures.files_of([source])))
        if restless or len(rounds) == 1:
            (source / f"{len(rounds)}.ndb").write_text("Test.X:0:*:00")
        return len(rounds) > 1

    monkeypatch.setattr(followed, "bring_into_force", partial(bring_into_force, restless=False))
    assert followed.follow()
    assert rounds == [[], ["1.ndb"]]
    monkeypatch.setattr(followed, "bring_into_force", partial(bring_into_force, restless=True))
    followed.follow()
    assert len(rounds) == 2 + signatures.MOST_ROUNDS


def test_when_a_database_was_made(tmp_path):
    """ClamAV's own tell it, whenever they were fetched; of others the file's time counts."""
    for name, head, made in (
        ("daily.cvd", "ClamAV-VDB:07 Nov 2026 08-34 -0500:27000:2000000:90:0123:dsig:raynman:1794000000", 1794000000),
        ("old.cvd", "ClamAV-VDB:07 Nov 2006 08-34 -0500:2000:20000:9:0123:dsig:raynman", 1795000000),
        ("own.ndb", "Test.X:0:*:00", 1795000000),
    ):
        file = tmp_path / name
        file.write_bytes(head.encode().ljust(512) + b"\x1f\x8b\0\xff")
        os.utime(file, (1795000000, 1795000000))
        assert signatures.made_at(file) == made


def test_what_is_remembered_of_messages(tmp_path):
    """By GUID and number, over a restart; what is not there any more is forgotten."""
    file = tmp_path / "judged.sqlite"
    first = judged.Judged(file)
    first.note([f"g{number}" for number in range(1200)], 3)
    first.note_boxes([("a@b", "box", judged.Box(1, 9, 3, 2)), ("c@d", "box", judged.Box(1, 1, 0, 0))])
    first.close()
    again = judged.Judged(file)
    assert again.numbers([f"g{number}" for number in range(1300)]) == {f"g{number}": 3 for number in range(1200)}
    assert again.boxes("a@b") == {("a@b", "box"): judged.Box(1, 9, 3, 2)}
    again.forget_old({("a@b", "box")})
    assert list(again.boxes()) == [("a@b", "box")]
