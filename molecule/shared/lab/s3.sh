#!/bin/sh
# Runs on the backup server of a scenario: an S3 server on port 8443, OpenStack Swift from Debian with its S3 interface, on one disk,
# behind stunnel: Swift's own TLS is for tests of Swift, and hangs.
# https://docs.openstack.org/swift/latest/development_saio.html
#
#   s3.sh install   what is slow, and needs no certificate
#   s3.sh start     once, however many ask at once, with the host's own certificate; print the secret of letterlock:backup
set -eu

install_swift() {
  export DEBIAN_FRONTEND=noninteractive
  # Started only by start().
  for unit in memcached swift-proxy swift-account swift-container swift-object; do systemctl mask --runtime --quiet $unit; done
  apt-get install --yes --quiet --no-install-recommends swift-proxy swift-account swift-container swift-object memcached stunnel4 >/dev/null
  cat >/etc/stunnel/s3.conf <<CONF
foreground = yes
[s3]
accept = 0.0.0.0:8443
connect = 127.0.0.1:8080
cert = /etc/stunnel/s3.pem
CONF
  install -d -o swift -g swift /srv/swift/disk
  cat >/etc/swift/proxy-server.conf <<CONF
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = 8080
user = swift
[pipeline:main]
pipeline = catch_errors cache s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
[filter:s3api]
use = egg:swift#s3api
[filter:tempauth]
use = egg:swift#tempauth
user_letterlock_backup = $(tr -dc a-z0-9 </dev/urandom | head -c 24) .admin
[filter:slo]
use = egg:swift#slo
CONF
  cd /etc/swift
  for server in account:6202 container:6201 object:6200; do
    kind=${server%:*} port=${server#*:}
    cat >"$kind-server.conf" <<CONF
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $port
devices = /srv/swift
mount_check = false
user = swift
[pipeline:main]
pipeline = $kind-server
[app:$kind-server]
use = egg:swift#$kind
CONF
    rm -f "$kind.builder"
    swift-ring-builder "$kind.builder" create 4 1 0
    swift-ring-builder "$kind.builder" add "r1z1-127.0.0.1:$port/disk" 1
    swift-ring-builder "$kind.builder" rebalance
  done
  chown root:swift ./*.conf ./*.ring.gz
}

start_swift() {
  systemctl is-active --quiet swift-proxy && return
  (umask 077 && cat /etc/letterlock/tls/*/key.pem /etc/letterlock/backup_server/certificate.pem >/etc/stunnel/s3.pem)
  systemctl unmask --runtime --quiet memcached swift-proxy swift-account swift-container swift-object
  systemctl start memcached swift-account swift-container swift-object swift-proxy stunnel@s3
  for _ in $(seq 100); do
    python3 -c 'import socket; socket.create_connection(("127.0.0.1", 8080))' 2>/dev/null && return
    sleep 0.1
  done
  echo "Swift does not answer" >&2
  return 1
}

case $1 in
install) install_swift ;;
start)
  exec 9>/run/lock/s3
  flock 9
  start_swift 9>&-
  sed -n 's/^user_letterlock_backup = \(.*\) .admin/\1/p' /etc/swift/proxy-server.conf
  ;;
esac
