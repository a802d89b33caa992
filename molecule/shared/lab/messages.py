"""A handful of messages that are hard to carry unharmed, each the same on every run."""

from __future__ import annotations

import random
from email.message import EmailMessage
from email.policy import SMTP

ATTACHMENT_BYTES = 3 * 1024 * 1024


def compose(name: str, subject: str) -> EmailMessage:
    """Return a message with the headers that all of them have."""
    message = EmailMessage(policy=SMTP)
    message["From"] = "Mary Shelley <sender@example.org>"
    message["To"] = "ada@letterlock.test"
    message["Subject"] = subject
    message["Date"] = "Mon, 16 Nov 2026 09:30:00 +0000"
    message["Message-ID"] = f"<{name}@letterlock.example.org>"
    return message


def attachment(size: int = ATTACHMENT_BYTES) -> bytes:
    """Return *size* bytes that don't compress."""
    return random.Random(8314).randbytes(size)  # noqa: S311  # the same bytes on each run, not a secret


def multipart() -> bytes:
    """Text and HTML of one content."""
    message = compose("multipart", "Two faces of one text")
    message.set_content("Plain, for those who like it.\n")
    message.add_alternative("<p>Marked up, for those who don't.</p>\n", subtype="html")
    return fixed_boundary(message)


def with_attachment(size: int = ATTACHMENT_BYTES) -> bytes:
    """Text with an attachment of some MB."""
    message = compose("attachment", "Some megabytes")
    message.set_content("See the attachment.\n")
    message.add_attachment(attachment(size), maintype="application", subtype="octet-stream", filename="noise.bin")
    return fixed_boundary(message)


def fixed_boundary(message: EmailMessage) -> bytes:
    """Return the bytes of *message*, with a boundary that is the same on each run."""
    message.set_boundary("=_letterlock_boundary")
    return message.as_bytes()


def utf8_headers() -> bytes:
    """Headers in UTF-8 (RFC 6532), not encoded."""
    head = (
        "From: Zoë Müller <sender@example.org>\r\nTo: ada@letterlock.test\r\nSubject: Grüße aus Köln, 你好, привет\r\n"
        "Date: Mon, 16 Nov 2026 09:30:00 +0000\r\nMessage-ID: <utf8@letterlock.example.org>\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    )
    return (head + "Ein Satz mit Umlauten: äöüß.\r\n").encode()


def eight_bit_and_long_lines() -> bytes:
    """Latin-1 bytes that are no UTF-8, a line of 998 octets and one far longer, and lines that begin with dots."""
    head = (
        b"From: sender@example.org\r\nTo: ada@letterlock.test\r\nSubject: 8 bit and long lines\r\n"
        b"Date: Mon, 16 Nov 2026 09:30:00 +0000\r\nMessage-ID: <eightbit@letterlock.example.org>\r\n"
        b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    )
    body = [b"caf\xe9 \xfcber alles", b"x" * 998, b"y" * 6000, b".", b"..two dots", b"", b"the end"]
    return head + b"\r\n".join(body) + b"\r\n"


def empty_body() -> bytes:
    """Headers and nothing else."""
    message = compose("empty", "Nothing")
    return message.as_bytes().split(b"\r\n\r\n")[0] + b"\r\n\r\n"


def handful() -> dict[str, bytes]:
    """Return the messages by name."""
    return {
        "multipart": multipart(),
        "attachment": with_attachment(),
        "utf8": utf8_headers(),
        "eightbit": eight_bit_and_long_lines(),
        "empty": empty_body(),
    }
