"""The gate: before a session sees a mailbox, what the current signatures have not judged in it is judged.

Dovecot's imap and pop3 ask here before each session, and wait. A session begins when
nothing is left that was never judged, and nothing unseen or recent that the current
signatures have not judged; what is older the sweep judges. Where that takes longer than
the budget the policy says whether the session begins all the same, but what was never
judged is never served while the scanner gives no verdict.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from letterlock import people, post_login, scan_settings, session_key, traces
from letterlock.accounts import place_of
from letterlock.clamd import Unavailable
from letterlock.daemon import Steps
from letterlock.doveadm import Doveadm, Failed, any_of, in_mailbox
from letterlock.judged import Box, Judged
from letterlock.rescan import MESSAGE_FIELDS, Judge, Message, Outcome, messages_of, query_for
from letterlock.settings import Unusable
from letterlock.signatures import version

if TYPE_CHECKING:
    import socket

    from letterlock.scan_settings import ScanSettings

STATUS = ["guid", "uidvalidity", "uidnext"]
# No session waits longer, whatever the policy.
LONGEST_SECONDS = 600
SESSIONS = 500
WORKERS = 4
FIRST_PART = 5


class Refused(Exception):
    """The session may not begin now; the message says why."""


class Gate:
    """The question of one session."""

    def __init__(self, settings: ScanSettings, judged: Judged, doveadm: Doveadm, login: post_login.Login, number: int) -> None:
        """Take whose session it is, what is remembered, and the *number* of the signatures in force."""
        self.settings, self.judged, self.doveadm, self.number = settings, judged, doveadm, number
        self.account, self.key = login.account, session_key.settings_of(login.values)

    def open(self) -> bool:
        """Judge what has to be; return whether nothing is left. Raises Refused or Failed."""
        boxes = self.news()
        return not boxes or self.judge(boxes)

    def news(self) -> list[tuple[dict, Box]]:
        """Return (status, what is known) of the mailboxes in which something may have to be judged."""
        known = self.judged.boxes(self.account)
        found = []
        for status in self.doveadm.one("mailboxStatus", user=self.account, field=STATUS, mailboxMask=["*"]):
            box = known.get((self.account, status["guid"]), Box())
            if box.validity != int(status["uidvalidity"]):
                box = Box(validity=int(status["uidvalidity"]))
            # Without signatures nothing can be judged anew, and what came in was let in by the operator's word.
            if int(status["uidnext"]) != box.next_uid or box.gate != self.number:
                found.append((status, box))
        return found

    def wanted(self, boxes: list[tuple[dict, Box]]) -> tuple[list[Message], set[str]]:
        """Return the messages to be judged, the newest first, and the GUIDs of those that never were."""
        recent = str(int(time.time()) - self.settings.gate.recent_seconds)
        terms = []
        for status, box in boxes:
            where = in_mailbox(status["mailbox"], status["guid"])
            new = ["uid", f"{box.next_uid}:4294967295"]
            fresh = [] if box.gate == self.number else [["unseen"], ["savedsince", recent]]
            terms.append([*where, *any_of([new, *fresh])])
        rows = self.doveadm.one("fetch", user=self.account, field=MESSAGE_FIELDS, query=any_of(terms))
        messages = list(messages_of(self.account, {status["guid"]: status["mailbox"] for status, _ in boxes}, rows))
        numbers = self.judged.numbers([message.guid for message in messages])
        left = [message for message in messages if numbers.get(message.guid, 0) < self.number or not self.number]
        # Of what came within one second, or was brought in with one date, the last has the highest UID.
        return sorted(left, key=lambda each: (-each.saved, -each.uid)), {each.guid for each in left if each.guid not in numbers}

    def judge(self, boxes: list[tuple[dict, Box]]) -> bool:
        """Judge what is news in *boxes*, and remember them; return whether nothing is left. Raises Refused."""
        messages, never = self.wanted(boxes)
        outcome = Outcome()
        try:
            in_time = self.judge_in_time(messages, never, outcome)
        except Unavailable as why:
            if never and not self.settings.gate.serves_unjudged:
                raise Refused(f"{len(never)} messages were never judged, and the scanner gives no verdict: {why}") from why
            print(f"{self.account}: goes on without a verdict: {why}", file=sys.stderr, flush=True)
            return False
        finally:
            self.judged.note([message.guid for message in outcome.clean], self.number)
        if outcome.failed:
            raise Refused(f"{len(outcome.failed)} messages could not be taken away or read")
        if outcome.sealed:
            raise Refused(f"{len(outcome.sealed)} messages are encrypted with a key that the gate does not have")
        judged = {message.key for message in [*outcome.clean, *(message for message, _ in outcome.taken)]}
        left = [message for message in messages if message.key not in judged]
        if not left or (in_time and not self.still_there(left)):
            self.judged.note_boxes([
                (self.account, status["guid"], Box(box.validity, int(status["uidnext"]), self.number, box.sweep)) for status, box in boxes
            ])
            return True
        if self.settings.gate.waits:
            raise Refused(f"judging took longer than {LONGEST_SECONDS} s")
        return False

    def judge_in_time(self, messages: list[Message], never: set[str], outcome: Outcome) -> bool:
        """Judge *messages*, those that *never* were first, as many as the budget allows; return whether it came to the end.

        Raises Unavailable.
        """
        if messages and not self.number:
            raise Unavailable("there are no signatures")
        begun, wanted = time.monotonic(), self.settings.gate
        judge = Judge(self.settings, "gate", key=self.key)
        # What was let in unjudged is owed, whatever it takes. Of what was judged once the session need not wait for all.
        left = sorted(messages, key=lambda each: each.guid not in never)
        count = FIRST_PART
        while left:
            # In parts that grow, because doveadm reads a part in its own order, and the newest come first. Those are judged whatever
            # the budget: to open a large Maildir alone may take longer.
            some, left = left[:count], left[count:]
            owed = self.settings.deliver_unscanned and not never.isdisjoint(message.guid for message in some)
            seconds = LONGEST_SECONDS if wanted.waits or owed or count == FIRST_PART else wanted.budget
            if time.monotonic() - begun >= seconds:
                return False
            with people.first():
                outcome.add(judge.judge(some, WORKERS, lambda seconds=seconds: time.monotonic() - begun < seconds))
            count *= 2
        return True

    def still_there(self, messages: list[Message]) -> bool:
        """Tell whether any of *messages*, which were not judged, is still there."""
        return bool(self.doveadm.one("fetch", user=self.account, field=["uid"], query=query_for(messages)))


class Server(Steps):
    """Answers Dovecot's sessions."""

    def __init__(self) -> None:
        """Begin."""
        super().__init__()
        self.judged = Judged()
        self.quiet = traces.Quiet()
        self.room = threading.Semaphore(SESSIONS)
        self.idle: list[Doveadm] = []
        self.settings, self.settings_read_as = None, (0, 0)

    @contextlib.contextmanager
    def doveadm(self):
        """Lend a connection to doveadm that no other session uses meanwhile."""
        with self.mutex:
            connection = self.idle.pop() if self.idle else Doveadm()
        yield connection
        with self.mutex:
            self.idle.append(connection)

    def refresh(self) -> ScanSettings:
        """Return the settings, read anew when they have changed; raise Unusable or OSError."""
        status = scan_settings.FILE.stat()
        read_as = status.st_ino, status.st_mtime_ns
        if read_as != self.settings_read_as:
            self.settings, self.settings_read_as = scan_settings.read(), read_as
        return self.settings

    def may_begin(self, settings: ScanSettings, login: post_login.Login) -> bool:
        """Tell whether a session may begin after *login*, when what has to be judged was."""
        if not settings.gate.enabled:
            return True
        number, begun, account = version().number, time.time(), login.account
        try:
            found = traces.of(settings.mail_root / place_of(account), settings.mail_root.stat().st_uid)
            if self.quiet.is_still(account, number, found):
                return True
            with self.doveadm() as doveadm:
                if Gate(settings, self.judged, doveadm, login, number).open():
                    self.quiet.note(account, number, found, begun)
        except (Refused, Failed, OSError, KeyError, ValueError, subprocess.SubprocessError) as why:
            print(f"{account}: no session: {why}", file=sys.stderr, flush=True)
            return False
        return True

    def serve(self, connection: socket.socket, protocol: str) -> None:
        """Answer one question."""
        try:
            with self.busy(), connection:
                connection.settimeout(LONGEST_SECONDS)
                with post_login.login(connection, protocol) as login:
                    settings = self.refresh()
                    if not self.may_begin(settings, login):
                        login.refuse()
                    elif protocol in settings.gate.others:
                        login.pass_on(connection, settings.gate.others[protocol])
                    else:
                        login.begin(connection)
        except (OSError, Unusable, post_login.Broken) as why:
            # Who asked may be gone, and with it the session; without an answer none begins.
            print(f"no session: {why}", file=sys.stderr, flush=True)
        finally:
            self.room.release()

    def listen(self, listener: socket.socket) -> None:
        """Take the connections of one protocol, after which its socket is named."""
        protocol = Path(listener.getsockname()).name
        while True:
            self.room.acquire()
            connection, _ = listener.accept()
            threading.Thread(target=self.serve, args=(connection, protocol), daemon=True).start()


def run(listeners: list[socket.socket]) -> int:
    """Serve until the programs change."""
    server = Server()
    for listener in listeners:
        listener.setblocking(True)
        threading.Thread(target=server.listen, args=(listener,), daemon=True).start()
    server.step_aside()
    return 0
