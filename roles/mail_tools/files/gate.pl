#!/usr/bin/perl -T
# Dovecot runs this before each session, by script-login: gate PROTOCOL SESSION... It asks letterlock-gate.service whether the
# session may begin, and goes on with it. Perl, because it is on every Debian and starts in a third of Python's time, and a
# session's user waits. https://doc.dovecot.org/latest/core/config/post_login_scripting.html
use strict;
use warnings;
use Socket;

$ENV{PATH} = '/usr/bin:/bin';
my ($protocol, @session) = map { /\A(.*)\z/s } @ARGV;
my ($account) = ($ENV{USER} // '') =~ /\A([^\r\n]+)\z/;

my $answer = '';
my $gate;
if (defined $account && socket($gate, AF_UNIX, SOCK_STREAM, 0) && connect($gate, sockaddr_un('/run/letterlock-gate/gate.sock'))) {
    syswrite $gate, "$account\n";
    $answer = <$gate> // '';
}
exec {$session[0]} @session if $answer eq "go\n";

# RFC 5530 and RFC 3206: for a while only.
my %no = (
    imap => "* BYE [UNAVAILABLE] Mail is being checked for malware. Try again later.\r\n",
    pop3 => "-ERR [SYS/TEMP] Mail is being checked for malware. Try again later.\r\n",
);
syswrite STDOUT, $no{$protocol} // '';
exit 75;
