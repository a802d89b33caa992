"""How the gate speaks with Dovecot's sessions, and by what it knows that an account has no new mail."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest
from letterlock import post_login, traces

ASKED = b"VERSION\tscript-login\t1\t0\n192.0.2.1\t192.0.2.2\tada\x011x@example.org\tuid=5000\thome=/srv/a\x01tb\n"


@pytest.fixture
def connection():
    """Return both ends of a connection."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    theirs.settimeout(5)
    with ours, theirs:
        yield ours, theirs


def test_a_session_begins_with_what_dovecot_knows(connection):
    """But for the addresses, and unchanged; a name is unescaped."""
    ours, theirs = connection
    socket.send_fds(theirs, [ASKED], [theirs.fileno()])
    with post_login.login(ours, "imap") as login:
        assert login.account == "ada\x01x@example.org"
        login.begin(ours)
    assert theirs.recv(999) == ASKED.split(b"\n")[1].split(b"\t", 2)[2] + b"\n"


def test_a_request_in_pieces(connection):
    """The descriptor comes with the first of them."""
    ours, theirs = connection
    socket.send_fds(theirs, [ASKED[:30]], [theirs.fileno()])

    def send() -> None:
        for octet in ASKED[30:]:
            theirs.sendall(bytes([octet]))

    sender = threading.Thread(target=send)
    sender.start()
    with post_login.login(ours, "imap") as login:
        assert login.text == ASKED
    sender.join()


@pytest.mark.parametrize(("text", "with_client"), [
    (ASKED, False), (ASKED[:-1], True), (ASKED + b"x\n", True), (ASKED.replace(b"\t1\t", b"\t2\t"), True), (b"\n\n", True), (b"", True),
])
def test_what_is_no_request(connection, text, with_client):
    """Another version, a line too many, or half of one."""
    ours, theirs = connection
    if text:
        socket.send_fds(theirs, [text], [theirs.fileno()] if with_client else [])
    theirs.shutdown(socket.SHUT_WR)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names alone
    with pytest.raises(post_login.Broken), post_login.login(ours, "imap"):
        pass
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_the_client_is_told_when_to_come_again(connection):
    """In its own protocol, on its own connection."""
    ours, theirs = connection
    client, served = socket.socketpair()
    with client, served:
        socket.send_fds(theirs, [ASKED], [served.fileno()])
        with post_login.login(ours, "pop3") as login:
            login.refuse()
        assert client.recv(999).startswith(b"-ERR [SYS/TEMP] ")


def test_what_else_stands_before_a_session_is_asked(connection, tmp_path):
    """It gets the client's connection and may put another in its place."""
    ours, theirs = connection
    mine, other = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as listener, mine, other:
        listener.bind(str(tmp_path / "next"))
        listener.listen()

        def serve() -> None:
            asked, _ = listener.accept()
            with asked, post_login.login(asked, "pop3") as passed:
                socket.send_fds(asked, [b"\t".join(passed.fields) + b"\n"], [other.fileno()])

        server = threading.Thread(target=serve)
        server.start()
        socket.send_fds(theirs, [ASKED], [theirs.fileno()])
        with post_login.login(ours, "pop3") as login:
            login.pass_on(ours, str(tmp_path / "next"))
        text, (replaced,), _, _ = socket.recv_fds(theirs, 999, 1)
        server.join()
        assert text.startswith(b"ada")
        with socket.socket(fileno=replaced) as session:
            session.sendall(b"hello")
        assert mine.recv(9) == b"hello"


@pytest.fixture(params=["sdbox", "maildir"])
def home(request, tmp_path):
    """Return a home with two mailboxes that were last changed an hour ago, (home, directory of messages, log)."""
    if request.param == "sdbox":
        folders = [tmp_path / "sdbox" / "mailboxes" / name / "dbox-Mails" for name in ("INBOX", "Archive/2026")]
        logs = [folder / traces.LOG for folder in folders]
    else:
        roots = [tmp_path / "Maildir", tmp_path / "Maildir" / ".Archive"]
        folders = [root / name for root in roots for name in ("cur", "new")]
        logs = [root / traces.LOG for root in roots]
    for folder in folders:
        folder.mkdir(parents=True)
    for log in logs:
        log.write_bytes(b"x")
    hour_ago = time.time() - 3600
    for path in [*folders, *logs]:
        os.utime(path, (hour_ago, hour_ago))
    return tmp_path, folders[-1], logs[-1]


def seen(home) -> dict:
    """Return an account's traces."""
    return traces.of(home, os.getuid())


def test_what_has_not_changed_is_quiet(home):
    """For the same signatures, as often as it is asked; flags, which stand in the log alone, are no news."""
    home, _, log = home
    quiet = traces.Quiet()
    assert not quiet.is_still("ada", 1, seen(home))
    quiet.note("ada", 1, seen(home), time.time())
    assert quiet.is_still("ada", 1, seen(home))
    assert not quiet.is_still("ada", 2, seen(home))
    assert not quiet.is_still("bob", 1, seen(home))
    log.write_bytes(b"x" * 99)
    assert quiet.is_still("ada", 1, seen(home))


@pytest.mark.parametrize("change", ["message", "mailbox", "replaced", "gone"])
def test_any_new_name_is_news(home, change):
    """A message, a mailbox, a directory that took another's place with all its times, or one that is gone."""
    home, folder, _ = home
    quiet = traces.Quiet()
    quiet.note("ada", 1, seen(home), time.time())
    status = folder.stat()
    if change == "message":
        (folder / "u.7").write_bytes(b"")
    elif change == "mailbox":
        for name in ("sdbox/mailboxes/New/dbox-Mails", "Maildir/.New/cur", "Maildir/.New/new"):
            if (home / name.split("/", 1)[0]).is_dir():
                (home / name).mkdir(parents=True)
    else:
        folder.rename(folder.with_name("aside"))
        if change == "replaced":
            folder.mkdir()
            os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not quiet.is_still("ada", 1, seen(home))


def test_what_changed_just_now_is_not_taken_for_quiet(home):
    """Its next change may be in the same tick; and what changed of late is quiet only as long as its log is the same."""
    home, folder, log = home
    quiet = traces.Quiet()
    (folder / "u.7").write_bytes(b"")
    now = folder.stat().st_mtime
    quiet.note("ada", 1, seen(home), now + 0.5)
    assert not quiet.is_still("ada", 1, seen(home))
    quiet.note("ada", 1, seen(home), now + 2)
    assert quiet.is_still("ada", 1, seen(home))
    log.write_bytes(b"the UID of a message whose name was there")
    if log.parent == folder:
        os.utime(folder, ns=(0, folder.stat().st_mtime_ns))
    assert not quiet.is_still("ada", 1, seen(home))


def test_an_account_without_mail_is_asked_of_dovecot(tmp_path):
    """Nothing is known of it by its directories."""
    quiet = traces.Quiet()
    assert seen(tmp_path / "nobody") == {}
    quiet.note("ada", 1, {}, time.time())
    assert not quiet.is_still("ada", 1, {})
