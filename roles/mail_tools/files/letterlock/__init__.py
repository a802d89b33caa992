"""What Letterlock runs on a mail host, in the host's own python3 and with the standard library first.

It speaks to Dovecot through doveadm's HTTP API on a unix socket, never behind
its back: no mail file is opened or removed here.
"""
