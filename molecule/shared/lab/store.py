"""The mail of one host under test: what its users put there and see there, over IMAP and POP3, and the operator's commands."""

from __future__ import annotations

import hashlib
import re
import shlex

import clients

MAILBOXES = ["INBOX", "Archive", "Entw&APw-rfe", "Trash"]
RESTIC = "set -a; . /etc/letterlock/backup/environment; set +a; RESTIC_PASSWORD_FILE=/etc/letterlock/backup/password restic"


class Store:
    """The mail of one host: what its users put there and see there, and the operator's commands."""

    def __init__(self, host, mail, declared) -> None:
        """Take testinfra's host, the mail clients' side and what the inventory declared."""
        self.host, self.mail, self.root = host, mail, declared["mail_root"]

    def fill(self, user: str, label: str, count: int = 6) -> None:
        """Deliver messages over LMTP, and sort, flag and expunge some over IMAP as a user does."""
        for number in range(count):
            body = "".join(f"{label} {number} {line}\r\n" for line in range(number * 40 + 1))
            head = f"From: s@example.org\r\nSubject: {label}-{number}\r\nMessage-ID: <{label}-{number}@example.org>\r\n\r\n"
            self.mail.deliver(user, (head + body).encode())
        with clients.imap(*self.mail.login(user)) as client:
            for mailbox in MAILBOXES[1:]:
                client.create(mailbox)
            client.select("INBOX")
            assert client.append("Archive", "(\\Seen)", '"05-Mar-2019 10:11:12 +0000"', b"Subject: appended\r\n\r\nx\r\n")[0] == "OK"
            client.store("1", "+FLAGS", "(\\Flagged $Important own-keyword)")
            client.store("2", "+FLAGS", "(\\Seen \\Answered)")
            client.copy("1:2", "Archive")
            client.copy("3", MAILBOXES[2])
            client.store("4", "+FLAGS", "(\\Deleted)")
            client.expunge()

    def seen(self, user: str) -> dict:
        """Return all that a user's clients can tell of the mail: by IMAP each mailbox, by POP3 the unique ids and the text."""
        found = {}
        with clients.imap(*self.mail.login(user)) as client:
            for mailbox in MAILBOXES:
                if client.select(mailbox, readonly=True)[0] != "OK":
                    continue
                validity = client.response("UIDVALIDITY")[1][0]
                _, answers = client.uid("FETCH", "1:*", "(FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])")
                found[mailbox] = (validity, sorted(described(answer) for answer in answers if isinstance(answer, tuple)))
        with clients.pop3(*self.mail.login(user)) as client:
            _, lines, _ = client.uidl()
            texts = [hashlib.sha256(b"\n".join(client.retr(line.split()[0].decode())[1])).hexdigest() for line in lines]
            found["POP3"] = list(zip(lines, texts, strict=True))
        return found

    def lose(self) -> None:
        """Lose all mail and what the kit knows of it, as with a new disk."""
        self.host.check_output(
            f"systemctl stop dovecot && rm -rf {self.root}/* {self.root}/.letterlock* /var/lib/letterlock/ledger "
            "/var/lib/letterlock/marks.sqlite /var/lib/letterlock/last_run.json /var/lib/letterlock/backup && systemctl start dovecot"
        )

    def letterlock(self, arguments: str, *, clock: str = ""):
        """Run the command, by a moved *clock* where one is given."""
        return self.host.run(f"{f'faketime -f {clock} ' if clock else ''}letterlock {arguments}")

    def backup(self) -> str:
        """Back up by the timer's own service; return what it said."""
        done = self.host.run("systemctl start letterlock-backup")
        said = self.host.check_output("journalctl --unit letterlock-backup --no-pager --output cat --lines 40")
        assert done.rc == 0, said
        return said

    def restic(self, arguments: str):
        """Run restic on the repository; what it is refused it tries for a quarter of an hour, unless it is asked to end."""
        return self.host.run(f"timeout 30 sh -c {shlex.quote(f'{RESTIC} {arguments}')}")


def described(answer: tuple[bytes, bytes]) -> tuple:
    """Return (UID, flags, date, size, hash of the text) of one answer to FETCH."""
    head, body = answer
    uid, size = (int(re.search(rf"{name} (\d+)".encode(), head).group(1)) for name in ("UID", r"RFC822\.SIZE"))
    flags = frozenset(re.search(rb"FLAGS \((.*?)\)", head).group(1).split()) - {b"\\Recent"}
    date = re.search(rb'INTERNALDATE "(.*?)"', head).group(1)
    return uid, sorted(flags), date, size, hashlib.sha256(body).hexdigest()
