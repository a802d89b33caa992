#!/usr/bin/perl -T
# Sieve pipes a message that its user moved into \Junk, or out of it, to this: learn spam|ham. It hands it to letterlock-learn.socket.
# A fault is the operator's to see and no reason to hold the user's move up.
use strict;
use warnings;
use Socket;

my ($kind) = ($ARGV[0] // '') =~ /\A(spam|ham)\z/ or exit 64;
socket(my $learn, AF_UNIX, SOCK_STREAM, 0) or exit 75;
connect($learn, sockaddr_un('/run/letterlock-learn/learn.sock')) or exit 75;
binmode STDIN;
binmode $learn;
print {$learn} "$kind\n";
while (read STDIN, my $block, 65536) { print {$learn} $block }
close $learn;
