#!/bin/sh
# Runs on a host of the bench: Dovecot as Debian ships it, with TLS and the bench's accounts, to compare with.
#
#   stock.sh HASH
set -eu
hash=$1

export DEBIAN_FRONTEND=noninteractive
apt-get install --yes --quiet --no-install-recommends dovecot-core dovecot-imapd dovecot-pop3d dovecot-lmtpd >/dev/null
id vmail >/dev/null 2>&1 || useradd --system --uid 5000 --home-dir /srv/mail --create-home vmail
install -d -o vmail -g vmail -m 0700 /srv/mail
: >/etc/dovecot/bench.users
for number in $(seq 0 19); do
  echo "user$number@bench.test:$hash:5000:5000::/srv/mail/user$number::" >>/etc/dovecot/bench.users
done

# PAM, which is asked first, would answer each of our users after seconds.
sed -i 's/^!include auth-system/#&/' /etc/dovecot/conf.d/10-auth.conf

# What the shipped configuration leaves to the operator: who the users are, where their mail lies,
# and a whole address as the name that LMTP looks up.
case $(dovecot --version) in
2.3*)
  cat >/etc/dovecot/local.conf <<'EOF'
ssl = required
mail_location = maildir:~/Maildir
passdb {
  driver = passwd-file
  args = scheme=ARGON2ID username_format=%u /etc/dovecot/bench.users
}
userdb {
  driver = passwd-file
  args = username_format=%u /etc/dovecot/bench.users
}
EOF
  ;;
*)
  cat >/etc/dovecot/local.conf <<'EOF'
ssl = required
mail_driver = maildir
mail_path = ~/Maildir
mail_inbox_path = ~/Maildir
protocol lmtp {
  auth_username_format = %{user | lower}
}
passdb passwd-file {
  passwd_file_path = /etc/dovecot/bench.users
  default_password_scheme = ARGON2ID
}
userdb passwd-file {
  passwd_file_path = /etc/dovecot/bench.users
}
EOF
  ;;
esac
systemctl restart dovecot
