"""mbsync and fetchmail, from Debian, as users have them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

MBSYNC = """
IMAPAccount lab
Host {server}
User {user}
Pass {password}
{tls} IMAPS
CertificateFile {work}/ca.pem

IMAPStore far
Account lab

MaildirStore near
Path {work}/mail/
Inbox {work}/mail/INBOX
SubFolders Verbatim

Channel lab
Far :far:
Near :near:
Patterns INBOX Archive
Create Near
Sync All
SyncState *
"""
FETCHMAIL = """
poll {server} protocol POP3 port 995 uidl
  user "{user}" password "{password}" ssl sslcertck sslcertfile {work}/ca.pem keep mda "cat >>{work}/fetched"
"""


class Client:
    """Both of them, with the mail of one account."""

    def __init__(self, host, mail, user: str) -> None:
        """Set both up on testinfra's *host*, which knows the mail host by its name."""
        self.host, name = host, mail.host["name"]
        self.work = f"/root/{name}"
        # Debian 12's mbsync 1.4 has the older word.
        tls = "SSLType" if " 1.4" in host.check_output("mbsync --version") else "TLSType"
        values = {"server": f"{name}.letterlock.test", "user": user, "password": mail.accounts[user], "work": self.work, "tls": tls}
        self.host.check_output(f"mkdir -p {self.work}/mail")
        for file, text in (
            ("ca.pem", Path(mail.ca_file).read_text()), ("mbsyncrc", MBSYNC.format(**values)), ("fetchmailrc", FETCHMAIL.format(**values)),
        ):
            self.host.check_output(f"printf %s {shlex.quote(text)} >{self.work}/{file} && chmod 600 {self.work}/{file}")

    def sync(self) -> str:
        """Let mbsync bring both sides together; return what it says it did."""
        done = self.host.run(f"mbsync --config {self.work}/mbsyncrc --all")
        assert done.rc == 0, done
        return done.stdout

    def held(self) -> str:
        """Return the messages that mbsync holds: names, which have the flags, and hashes."""
        return self.host.check_output(f"cd {self.work}/mail && find . -path '*/cur/*' -o -path '*/new/*' | sort | xargs sha256sum")

    def fetch(self) -> int:
        """Let fetchmail get what it has not seen; return how many messages that were."""
        done = self.host.run(f"cd {self.work} && fetchmail --fetchmailrc fetchmailrc --idfile ids --pidfile pid --verbose")
        # 1: there was nothing new.
        assert done.rc in (0, 1), done
        return len(re.findall(r"^reading message", done.stdout, re.MULTILINE))
