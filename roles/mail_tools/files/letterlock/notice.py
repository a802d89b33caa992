"""What a user is told of a message that went to quarantine."""

from __future__ import annotations

import contextlib
import email.policy
import string
import time
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.utils import formatdate, make_msgid
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from letterlock.quarantine import Item

HEADER_OCTETS = 1 << 18
SHOWN = 200


def shown(text: str | None) -> str:
    """Return a header's *text* as one line of plain words, cut where it is long."""
    if not text:
        return "(none)"
    with contextlib.suppress(LookupError, ValueError):  # an unknown or false charset
        text = str(make_header(decode_header(text)))
    clean = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return clean[:SHOWN] + "…" * (len(clean) > SHOWN)


def headers_of(message: BinaryIO) -> dict[str, str]:
    """Return sender, subject and date of *message* for people to read."""
    message.seek(0)
    head = message.read(HEADER_OCTETS)
    message.seek(0)
    parsed = BytesHeaderParser(policy=email.policy.compat32).parsebytes(head)
    return {name: shown(None if parsed[header] is None else str(parsed[header]))
            for name, header in (("sender", "From"), ("subject", "Subject"), ("date", "Date"))}


def notice(item: Item, message: BinaryIO, *, sender: str, subject: str, text: str) -> bytes:
    """Return the message that tells the account of *item*; *text* and *subject* are templates with $sender, $subject, $date and more."""
    words = {
        **headers_of(message), "verdict": item.verdict, "signature": item.signature, "account": item.account, "mailbox": item.mailbox,
        "item": item.identity, "found": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(item.time)),
    }
    made = EmailMessage(policy=email.policy.SMTP)
    made["From"] = sender
    made["To"] = item.account
    made["Subject"] = shown(string.Template(subject).safe_substitute(words))
    made["Date"] = formatdate(item.time)
    made["Message-ID"] = make_msgid(idstring=item.identity, domain=sender.rpartition("@")[2].strip(">") or "localhost")
    # RFC 3834, 5: nobody's vacation answers it.
    made["Auto-Submitted"] = "auto-generated"
    made.set_content(string.Template(text).safe_substitute(words))
    return made.as_bytes()
