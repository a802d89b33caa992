"""What rspamd says of a message, and what it learns from its users, over its unix sockets.

https://rspamd.com/doc/developers/protocol.html
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from letterlock.clamd import Unavailable
from letterlock.doveadm import UnixConnection

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADER = "X-Letterlock-Spam"
SPAM, HAM = "spam", "ham"


@dataclass(frozen=True)
class Opinion:
    """rspamd's score of a message, and the action that it would take."""

    score: float
    action: str


class Rspamd:
    """One of rspamd's workers behind a socket."""

    def __init__(self, path: str, seconds: float) -> None:
        """Remember where it listens, and how many *seconds* it may take."""
        self.path, self.seconds = path, seconds

    def post(self, name: str, message: BinaryIO, headers: Mapping[str, str]) -> dict:
        """Return rspamd's answer to *message*; raise Unavailable."""
        connection = UnixConnection(self.path)
        try:
            connection.connect()
            connection.sock.settimeout(self.seconds)
            message.seek(0, 2)
            length = message.tell()
            message.seek(0)
            connection.request("POST", name, message, {**headers, "Content-Length": str(length)})
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"rspamd at {self.path}: {error}") from error
        finally:
            connection.close()
        try:
            return {"status": response.status, **json.loads(text)}
        except ValueError as error:
            raise Unavailable(f"rspamd at {self.path}: {response.status} {text[:200]!r}") from error

    def check(self, message: BinaryIO, sender: str, recipients: list[str]) -> Opinion:
        """Return what it thinks of *message*; raise Unavailable."""
        # Its protocol takes a header for each recipient; one is enough for what does not depend on the user.
        headers = {"From": sender, **({"Rcpt": recipients[0]} if recipients else {})}
        answer = self.post("/checkv2", message, headers)
        if answer["status"] != http.client.OK or "score" not in answer:
            raise Unavailable(f"rspamd at {self.path}: {answer}")
        return Opinion(float(answer["score"]), str(answer.get("action", "")))

    def learn(self, message: BinaryIO, kind: str) -> str:
        """Have it learn that *message* is spam or ham; return what it says of that."""
        answer = self.post(f"/learn{kind}", message, {})
        return "learnt" if answer.get("success") else str(answer.get("error", answer))
