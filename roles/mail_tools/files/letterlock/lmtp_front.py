"""Stands before Dovecot's LMTP, so that nothing is in a mailbox that was not judged.

Each connection has one of its own to Dovecot, which answers for senders and
recipients. A message is taken in whole, judged once, and only then handed on, so
that the answer says what became of it (RFC 2033): 250 when it is in the mailbox or
in quarantine, 4xx when it could not be judged, 5xx when the policy refuses it.
Nothing is answered with 250 and lost, and no bounce is ever made here.

systemd holds the sockets. When the kit's programs change, this process ends, and the
next connection starts the new one.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from letterlock import people, scan_settings
from letterlock.age import NotSealed
from letterlock.clamd import CLEAN, MALWARE, Unavailable, Verdict, chunks
from letterlock.daemon import Steps
from letterlock.notice import notice
from letterlock.quarantine import Item, Quarantine, fingerprint_of, hash_of
from letterlock.released import Released
from letterlock.settings import Unusable
from letterlock.signatures import version
from letterlock.spam import HEADER, Rspamd

if TYPE_CHECKING:
    from letterlock.scan_settings import ScanSettings

IDLE_SECONDS, HANDSHAKE_SECONDS, DOVECOT_SECONDS = 300, 15, 300
LONGEST_COMMAND = 4096
LONGEST_LINE = 1 << 16
IN_MEMORY = 1 << 20
SESSIONS = 200
# What is offered of what Dovecot offers: what this relay can carry. CHUNKING (RFC 3030) would need BDAT.
OFFERED = ("8BITMIME", "ENHANCEDSTATUSCODES", "PIPELINING", "SMTPUTF8")
# What the kit alone writes into a message's header.
OWN_HEADER = b"x-letterlock-"
TOO_LARGE = b"552 5.3.4 The message is larger than any that is taken in"
SPOOL = scan_settings.STATE / "spool"


class Gone(Exception):
    """One of the two sides went away, or speaks no LMTP."""


class Full(Exception):
    """The message is larger than any that is taken in."""


class Dovecot:
    """The connection to Dovecot's own LMTP."""

    def __init__(self, path: str) -> None:
        """Connect, and read the greeting."""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DOVECOT_SECONDS)
        try:
            self.socket.connect(path)
            self.stream = self.socket.makefile("rwb")
            self.greeting = self.answer()
        except OSError as error:
            raise Gone(f"Dovecot's LMTP at {path}: {error}") from error

    def answer(self) -> bytes:
        """Return one answer, of one line or many."""
        said = b""
        while True:
            try:
                line = self.stream.readline(LONGEST_COMMAND)
            except OSError as error:
                raise Gone(f"Dovecot's LMTP: {error}") from error
            if not line.endswith(b"\n"):
                raise Gone("Dovecot's LMTP closed the connection")
            said += line
            if line[3:4] != b"-":
                return said

    def command(self, line: bytes) -> bytes:
        """Send one command and return its answer."""
        try:
            self.stream.write(line + b"\r\n")
            self.stream.flush()
        except OSError as error:
            raise Gone(f"Dovecot's LMTP: {error}") from error
        return self.answer()

    def data(self, head: bytes, message: BinaryIO, recipients: int) -> list[bytes]:
        """Hand *message* on, after *head*; return the answer for each of the *recipients*."""
        answer = self.command(b"DATA")
        if not answer.startswith(b"354"):
            return [answer] * recipients
        message.seek(0)
        try:
            self.stream.write(head)
            for line in message:
                self.stream.write(b"." + line if line.startswith(b".") else line)
            self.stream.write(b".\r\n")
            self.stream.flush()
        except OSError as error:
            raise Gone(f"Dovecot's LMTP: {error}") from error
        return [self.answer() for _ in range(recipients)]

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self.stream.close()
        self.socket.close()


def account_of(recipient: bytes) -> str:
    """Return the account that Dovecot delivers *recipient* (the argument of RCPT TO) to: without detail, in lower case.

    >>> account_of(b"<Ada+lists@Example.org> NOTIFY=NEVER")
    'ada@example.org'
    """
    found = re.match(rb"\s*<([^>]*)>", recipient)
    local, _, domain = (found.group(1) if found else recipient).decode(errors="replace").strip().rpartition("@")
    return f"{local.strip(chr(34)).partition('+')[0]}@{domain}".lower()


def address_of(path: bytes) -> str:
    """Return the address in the argument of MAIL FROM or RCPT TO, without what could end a header.

    >>> address_of(b"<ada@example.org> BODY=8BITMIME")
    'ada@example.org'
    """
    found = re.match(rb"\s*<([^>\r\n]*)>", path)
    return found.group(1).decode("ascii", "replace").encode("ascii", "replace").decode() if found else ""


def receive(stream: BinaryIO, message: BinaryIO, most: int) -> None:
    r"""Read a message up to the line of one dot into *message*, each line ended by CRLF; raise Full when it was read and too large.

    Only CRLF.CRLF ends it, and every other line end becomes one: what is judged is then what Dovecot reads, whatever
    the sender means by a lone LF. Header fields of the kit's own name are not let in.
    """
    octets, in_header, dropping, at_start = 0, True, False, True
    while True:
        line = stream.readline(LONGEST_LINE)
        if line.endswith(b"\r"):
            # The other half of a CRLF may be all that is left to read.
            line += stream.readline(LONGEST_LINE)
        if not line:
            raise Gone("the client left in the middle of a message")
        if at_start:
            if line == b".\r\n":
                break
            line = line.removeprefix(b".")
            in_header = in_header and line not in (b"\r\n", b"\n")
            dropping = in_header and (line.lower().startswith(OWN_HEADER) or (dropping and line[:1] in b" \t"))
        at_start = line.endswith(b"\n")
        if at_start:
            line = line.removesuffix(b"\n").removesuffix(b"\r") + b"\r\n"
        octets += len(line)
        if octets <= most and not dropping:
            message.write(line)
    if octets > most:
        raise Full


class Session:
    """One connection."""

    def __init__(self, client: socket.socket, server: Server) -> None:
        """Take the client's socket, with TLS where it has some."""
        self.client, self.server = client, server
        self.stream = client.makefile("rwb")
        self.dovecot: Dovecot | None = None
        self.recipients: list[bytes] = []
        self.sender = b""

    def say(self, *answers: bytes) -> None:
        """Answer."""
        try:
            for answer in answers:
                self.stream.write(answer if answer.endswith(b"\n") else answer + b"\r\n")
            self.stream.flush()
        except OSError as error:
            raise Gone(str(error)) from error

    def run(self) -> None:
        """Serve until one side leaves."""
        try:
            self.dovecot = Dovecot(self.server.settings.lmtp_socket)
            self.say(self.dovecot.greeting)
            while self.command(self.stream.readline(LONGEST_COMMAND)):
                pass
        except Gone as gone:
            # Where nothing was answered, an MTA tries again.
            with contextlib.suppress(Gone):
                self.say(b"421 4.3.2 Try again")
            if self.recipients:
                print(f"a delivery broke off: {gone}", file=sys.stderr, flush=True)
        finally:
            if self.dovecot:
                self.dovecot.close()
            with contextlib.suppress(OSError):
                self.stream.close()
            self.client.close()

    def command(self, line: bytes) -> bool:
        """Carry out one command; return False after QUIT."""
        if not line:
            return False
        if not line.endswith(b"\n"):
            self.say(b"500 5.5.2 The line is too long")
            return False
        line = line.rstrip(b"\r\n")
        name = line.split(b" ")[0].split(b":")[0].upper()
        if name == b"LHLO":
            self.say(self.offer(self.dovecot.command(line)))
        elif name == b"DATA":
            self.data()
        elif name in (b"BDAT", b"STARTTLS", b"XCLIENT", b"AUTH"):
            self.say(b"502 5.5.1 Not offered")
        else:
            self.say(self.relay(name, line))
        return name != b"QUIT"

    def relay(self, name: bytes, line: bytes) -> bytes:
        """Have Dovecot answer a command, and remember what it says of recipients."""
        # RFC 1870's parameter is this relay's own, not Dovecot's.
        declared = re.search(rb" SIZE=(\d{1,20})", line, re.IGNORECASE) if name == b"MAIL" else None
        if declared and int(declared.group(1)) > self.server.settings.message_size_max:
            return TOO_LARGE
        answer = self.dovecot.command(line.replace(declared.group(), b"") if declared else line)
        if name in (b"RSET", b"MAIL", b"QUIT"):
            self.recipients = []
            self.sender = line.partition(b":")[2] if name == b"MAIL" else b""
        elif name == b"RCPT" and answer.startswith(b"2"):
            self.recipients.append(line.partition(b":")[2])
        return answer

    def offer(self, answer: bytes) -> bytes:
        """Return Dovecot's *answer* to LHLO with what this relay can carry."""
        self.recipients = []
        if not answer.startswith(b"250"):
            return answer
        first, *others = [line[4:].strip() for line in answer.splitlines()]
        lines = [first, *(word for word in others if word.split(b" ")[0].decode() in OFFERED),
                 b"SIZE %d" % self.server.settings.message_size_max]
        return b"".join(b"250%s%s\r\n" % (b" " if number == len(lines) - 1 else b"-", line) for number, line in enumerate(lines))

    def data(self) -> None:
        """Take a message in, have it judged, and answer for each recipient."""
        if not self.recipients:
            self.say(b"503 5.5.1 No valid recipients")
            return
        count = len(self.recipients)
        SPOOL.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.server.busy(), tempfile.SpooledTemporaryFile(IN_MEMORY, dir=SPOOL) as message:
            self.say(b"354 OK")
            try:
                receive(self.stream, message, self.server.settings.message_size_max)
                answers = self.judge(message)
            except Full:
                answers = [TOO_LARGE] * count
            except OSError as error:
                # The rest of the message is not read; what comes next would not be understood.
                print(f"a message could not be taken in: {error}", file=sys.stderr, flush=True)
                raise Gone(f"no room for a message: {error}") from error
            self.say(*answers)
        if not all(answer.startswith(b"2") for answer in answers):
            self.dovecot.command(b"RSET")
        self.recipients = []

    # ---- the verdict

    def judge(self, message: BinaryIO) -> list[bytes]:
        """Return the answer for each recipient."""
        settings, count = self.server.settings, len(self.recipients)
        try:
            verdict = self.verdict(message)
            spam = self.spam(message) if verdict.kind == CLEAN else b""
        except Unavailable as why:
            print(f"not judged: {why}", file=sys.stderr, flush=True)
            if settings.deliver_unscanned:
                return self.dovecot.data(b"", message, count)
            return [b"451 4.7.1 The message can't be scanned for malware now; try again later"] * count
        policy = "deliver" if verdict.kind == CLEAN else settings.policy[verdict.kind]
        if policy == "quarantine":
            return self.quarantine(message, verdict)
        name = re.sub(r"[^\x21-\x7e]", "?", verdict.signature).encode()
        if policy == "reject":
            why = b"The message contains malware" if verdict.kind == MALWARE else b"The message can't be scanned for malware"
            return [b"550 5.7.1 %s (%s)" % (why, name)] * count
        if spam and settings.raw["spam"]["policy"] == "reject":
            return [b"550 5.7.1 The message looks like spam"] * count
        head = b"X-Letterlock-Scan: %s; %s\r\n" % (verdict.kind.encode(), name) if policy == "tag" else spam
        return self.dovecot.data(head, message, count)

    def verdict(self, message: BinaryIO) -> Verdict:
        """Return clamd's verdict, or clean where the operator has released this very message before; raise Unavailable."""
        if not version().usable:
            raise Unavailable("there are no signatures")
        message.seek(0)
        with people.first():
            verdict = self.server.settings.clamd().scan(chunks(message))
        if verdict.kind != CLEAN and Released().has(fingerprint_of(message), verdict.signature):
            return Verdict(CLEAN)
        return verdict

    def spam(self, message: BinaryIO) -> bytes:
        """Return the header field that tells of spam, or nothing; raise Unavailable."""
        wanted = self.server.settings.raw["spam"]
        if not wanted["enabled"]:
            return b""
        rspamd = Rspamd(wanted["socket"], self.server.settings.timeout)
        opinion = rspamd.check(message, address_of(self.sender), [address_of(recipient) for recipient in self.recipients])
        # It rejects what is certain, such as GTUBE, whatever the score is.
        if opinion.score < wanted["score"] and opinion.action != "reject":
            return b""
        return f"{HEADER}: yes; score={opinion.score:.1f}\r\n".encode()

    def quarantine(self, message: BinaryIO, verdict: Verdict) -> list[bytes]:
        """Put *message* into quarantine for each recipient, and tell them."""
        sha256, octets = hash_of(message)
        fingerprint = fingerprint_of(message)
        answers, taken = [], []
        for recipient in self.recipients:
            try:
                item = self.server.quarantine.put(Item(
                    account=account_of(recipient), verdict=verdict.kind, signature=verdict.signature, stage="delivery",
                    octets=octets, sha256=sha256, fingerprint=fingerprint,
                ), message)
            except (OSError, NotSealed) as fault:
                print(f"not quarantined: {fault}", file=sys.stderr, flush=True)
                answers.append(b"451 4.3.0 The message can't be put into quarantine now; try again later")
                continue
            print(f"{item.account}: {item.verdict} {item.signature}, in quarantine as {item.identity}", flush=True)
            taken.append((recipient, item))
            answers.append(b"250 2.0.0 In quarantine")
        self.tell(taken, message)
        return answers

    def tell(self, taken: list[tuple[bytes, Item]], message: BinaryIO) -> None:
        """Deliver a notice to those whose message was *taken*. What is in quarantine is safe; a notice that fails is only told."""
        settings = self.server.settings.raw["notice"]
        if not settings["enabled"]:
            return
        for recipient, item in taken:
            text = notice(item, message, sender=settings["from"], subject=settings["subject"], text=settings["text"])
            try:
                deliver(self.server.settings.lmtp_socket, recipient.strip(), text)
            except Gone as gone:
                print(f"{item.account}: no notice of {item.identity}: {gone}", file=sys.stderr, flush=True)


def deliver(path: str, recipient: bytes, message: bytes) -> None:
    """Deliver *message*, with CRLF, to *recipient* (with its angle brackets) from nobody; raise Gone."""
    dovecot = Dovecot(path)
    try:
        # RFC 2033 has no delivery without LHLO; the empty sender lets nobody answer (RFC 5321, 4.5.5).
        for line in (b"LHLO localhost", b"MAIL FROM:<>", b"RCPT TO:" + recipient):
            answer = dovecot.command(line)
            if not answer.startswith(b"2"):
                raise Gone(answer.decode(errors="replace").strip())
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as file:
            file.write(message)
            (answer,) = dovecot.data(b"", file, 1)
        if not answer.startswith(b"2"):
            raise Gone(answer.decode(errors="replace").strip())
        dovecot.command(b"QUIT")
    finally:
        dovecot.close()


class Server(Steps):
    """All connections."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        """Take the sockets that systemd holds."""
        super().__init__()
        self.listeners = listeners
        self.settings: ScanSettings = scan_settings.read()
        self.quarantine = Quarantine(self.settings.recipients)
        self.room = threading.Semaphore(SESSIONS)
        self.context: tuple[tuple, ssl.SSLContext] | None = None

    def refresh(self) -> None:
        """Read the settings anew; what can't be read leaves those from before."""
        with contextlib.suppress(Unusable, ValueError, KeyError):
            self.settings = scan_settings.read()
            self.quarantine = Quarantine(self.settings.recipients)

    def tls(self) -> ssl.SSLContext:
        """Return the context with the certificate that Dovecot shows, too."""
        wanted = self.settings.raw["tls"]
        files = [Path(wanted[name]) for name in ("certificate", "key")]
        state = (str(wanted), *((str(file.resolve()), file.stat().st_mtime_ns) for file in files))
        if self.context is None or self.context[0] != state:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion[wanted["minimum"].replace("v1.", "v1_")]
            context.set_ciphers(wanted["ciphers"])
            context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
            context.load_cert_chain(*files)
            self.context = (state, context)
        return self.context[1]

    def serve(self, client: socket.socket, *, is_local: bool) -> None:
        """Serve one connection."""
        try:
            client.settimeout(HANDSHAKE_SECONDS)
            if not is_local:
                client = self.tls().wrap_socket(client, server_side=True)
            client.settimeout(IDLE_SECONDS)
            Session(client, self).run()
        except (OSError, ValueError):  # no handshake, or silence for too long
            client.close()
        finally:
            self.room.release()

    def listen(self, listener: socket.socket) -> None:
        """Take connections of one socket."""
        while True:
            self.room.acquire()
            try:
                client, _ = listener.accept()
            except OSError:
                self.room.release()
                continue
            self.refresh()
            threading.Thread(
                target=self.serve, args=(client,), kwargs={"is_local": listener.family == socket.AF_UNIX}, daemon=True,
            ).start()


def run(listeners: list[socket.socket]) -> int:
    """Serve until the programs change."""
    server = Server(listeners)
    for listener in listeners:
        listener.setblocking(True)
        threading.Thread(target=server.listen, args=(listener,), daemon=True).start()
    server.step_aside()
    return 0
