#!/usr/bin/python3 -SEI
"""Stands between a POP3 client and Dovecot's pop3, and remembers what was fetched.

Dovecot runs this before each session (script-login), as it runs its own
rawlog: the session's pop3 gets one end of a pair of sockets, and this process
relays between the other end and the client. It adds nothing to the session but
`UIDL n` before QUIT. https://doc.dovecot.org/2.3/admin_manual/debugging/debugging_rawlog/

Fetched is a message whose RETR was answered with +OK and whose last octet was
handed over, and of which the client has shown that it got it: it spoke again
after that, in a session that it ended with QUIT. A record of those messages
is on the disk before pop3 sees the QUIT. TOP, a download that broke off, a
session without QUIT leave none.

It is started for each session, so it imports little and is one file.
"""

import os
import select
import socket
import sys
import time

BLOCK = 65536
LONGEST_LINE = 4096
LONGEST_SESSION = 86400
END = b"\r\n.\r\n"


class Closed(Exception):
    """One of the two sides went away."""


class Relay:
    """One session."""

    def __init__(self, client, server, record):
        """Take both sockets, and the function that is told the unique ids at the end."""
        self.client, self.server, self.record = client, server, record
        self.from_client = self.from_server = b""
        # Numbers of messages: handed over; confirmed by the client's next word; marked by the client's own DELE.
        self.handed, self.confirmed, self.deleted = set(), set(), set()

    def receive_command(self):
        """Return the client's next line; what it says now confirms what was handed over before it spoke."""
        while b"\n" not in self.from_client:
            if len(self.from_client) > LONGEST_LINE:
                raise Closed
            readable, _, _ = select.select([self.client, self.server], [], [])
            if self.server in readable:
                # Unasked: a farewell, after which there is no session any more.
                self.receive()
                self.client.sendall(self.from_server)
                self.from_server = b""
                continue
            data = self.client.recv(BLOCK)
            if not data:
                raise Closed
            # Not from the buffer: a client that asked ahead has shown nothing.
            self.confirmed |= self.handed
            self.handed = set()
            self.from_client += data
        line, _, self.from_client = self.from_client.partition(b"\n")
        return line + b"\n"

    def receive(self):
        """Read more from pop3."""
        data = self.server.recv(BLOCK)
        if not data:
            if self.from_server:
                self.client.sendall(self.from_server)
            raise Closed
        self.from_server += data

    def first_line(self):
        """Return the next line from pop3."""
        while b"\n" not in self.from_server:
            self.receive()
        line, _, self.from_server = self.from_server.partition(b"\n")
        return line + b"\n"

    def relay_until_end(self, line):
        """Relay a multi-line answer that begins with *line* (RFC 1939, 3): to a line of one dot."""
        # The end may come in two pieces; what went before is kept to see it, and not sent twice.
        self.client.sendall(line)
        seen = b"\r\n"
        while True:
            window = seen + self.from_server
            at = window.find(END)
            if at >= 0:
                upto = at + len(END) - len(seen)
                self.client.sendall(self.from_server[:upto])
                self.from_server = self.from_server[upto:]
                return
            self.client.sendall(self.from_server)
            seen, self.from_server = window[-(len(END) - 1):], b""
            self.receive()

    def ask_uidls(self):
        """Return the unique ids of what the client has, as pop3 tells them now."""
        found = []
        for number in sorted(self.confirmed - self.deleted):
            self.server.sendall(b"UIDL %d\r\n" % number)
            words = self.first_line().split()
            if len(words) == 3 and words[0] == b"+OK":
                found.append(words[2].decode("ascii", "replace"))
        return found

    def command(self, line):
        """Carry one command over and its answer back; return False after QUIT."""
        words = line.split()
        name = words[0].upper() if words else b""
        number = int(words[1]) if len(words) > 1 and words[1].isdigit() else None
        if name == b"QUIT":
            uidls = self.ask_uidls()
            if uidls:
                self.record(uidls)
        self.server.sendall(line)
        answer = self.first_line()
        good = answer.startswith(b"+OK")
        if good and (name in (b"RETR", b"TOP", b"CAPA") or (name in (b"LIST", b"UIDL") and len(words) == 1)):
            self.relay_until_end(answer)
        else:
            self.client.sendall(answer)
        if good and name == b"RETR":
            self.handed.add(number)
        elif good and name == b"DELE":
            self.deleted.add(number)
        elif good and name == b"RSET":
            self.deleted.clear()
        return name != b"QUIT"

    def run(self):
        """Relay the whole session."""
        try:
            self.client.sendall(self.first_line())
            while self.command(self.receive_command()):
                pass
        except (Closed, OSError):
            pass


def write_record(spool, account, uidls):
    """Put a record into the *spool*, durably, before QUIT is answered."""
    # No json module: it takes as long to import as all the rest. Unique ids and accounts hold no quotes.
    listed = ", ".join(f'"{uidl}"' for uidl in uidls if '"' not in uidl and "\\" not in uidl)
    text = f'{{"account": "{account}", "ended": {int(time.time())}, "uidls": [{listed}]}}\n'
    name = f"{int(time.time())}-{os.getpid()}-{os.urandom(4).hex()}.json"
    hidden = f"{spool}/.{name}"
    handle = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, text.encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    directory = f"{spool}/fetched"
    os.rename(hidden, f"{directory}/{name}")
    handle = os.open(directory, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def main():
    """Put the relay between, and let script-login go on with the new socket."""
    spool, rest = sys.argv[1], sys.argv[2:]
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        os.dup2(theirs.fileno(), 0)
        os.dup2(theirs.fileno(), 1)
        theirs.close()
        os.execv(rest[0], rest)
    theirs.close()
    # script-login's own descriptors belong to the child; held here they would keep the session's start waiting.
    os.closerange(3, ours.fileno())
    os.closerange(ours.fileno() + 1, 64)
    client = socket.socket(fileno=0)
    # Dovecot's descriptors don't block; with a time-out Python waits for them. Dovecot itself ends idle sessions.
    client.settimeout(LONGEST_SESSION)
    ours.settimeout(LONGEST_SESSION)
    # script-login ends when it has handed the socket to pop3.
    os.waitpid(child, 0)
    account = os.environ["USER"]
    Relay(client, ours, lambda uidls: write_record(spool, account, uidls)).run()
    # Both ends at once: pop3 sees that its client is gone, the client that its session is over.
    ours.close()


if __name__ == "__main__":
    main()
