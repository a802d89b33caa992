"""Runs on a host: what clamsubmit speaks with, at the addresses of ClamAV's makers, which a lab without internet does not reach.

Usage: reports.py CERTIFICATE ANSWER FILE. Answers submissions with ANSWER (success or failure), and writes what was sent to FILE.
https://github.com/Cisco-Talos/clamav/blob/clamav-1.4.3/clamsubmit/clamsubmit.c
"""

from __future__ import annotations

import http.server
import json
import ssl
import sys
from pathlib import Path

CERTIFICATE, ANSWER, FILE = sys.argv[1:]
SIGNED = ("acl", "policy", "x-amz-meta-original-filename", "x-amz-credential", "x-amz-algorithm", "x-amz-date", "x-amz-signature")


class Reports(http.server.BaseHTTPRequestHandler):
    """The page with its token, the place for the file, the file, and the report."""

    def answer(self, code: int, text: str = "", **headers: str) -> None:
        """Send an answer."""
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(text))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:  # http.server's name
        """Give a token, and a place for a file."""
        if self.path.startswith("/presigned"):
            self.answer(200, json.dumps({"key": "uploads/1-file", **dict.fromkeys(SIGNED, "x")}))
        else:
            self.answer(200, '<input type="hidden" name="authenticity_token" value="token" />', Set_Cookie="_clamav-net_session=1; path=/")

    def do_POST(self) -> None:  # as above
        """Take a file, or what is said of it."""
        with Path(FILE).open("ab") as file:
            file.write(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/reports/submit":
            self.answer(302, Location=f"https://www.clamav.net/reports/{ANSWER}")
        else:
            self.answer(204)


server = http.server.HTTPServer(("127.0.0.1", 443), Reports)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
