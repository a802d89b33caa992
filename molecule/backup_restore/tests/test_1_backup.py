"""A backup holds what it should, keeps its secrets, forgets when it should, and says what is wrong."""

from __future__ import annotations

import json
import re
import time

import pytest

pytestmark = pytest.mark.requirement("LOSS-3")

SECRETS = "/etc/letterlock/backup"
STATE = "/var/lib/letterlock/backup/state.json"
ENVIRONMENT = f"set -a; . {SECRETS}/environment; set +a; export RESTIC_PASSWORD_FILE={SECRETS}/password"
USERS = ["ada@letterlock.test", "bob@letterlock.test", "grace@example.test"]


def test_a_backup_by_the_timer(host, store):
    """By the sandboxed service; the manifests name every message."""
    for user in USERS:
        store.fill(user, user.split("@")[0])
    said = store.backup()
    assert "made the repository" in said
    assert "0 failures" in said, said
    manifests = json.loads(host.check_output("cat /var/lib/letterlock/backup/stage/manifests/letterlock.test/ada.json"))
    boxes = {box["name"]: box for box in manifests["mailboxes"]}
    assert {name: len(box["messages"]) for name, box in boxes.items() if box["messages"]} == {"INBOX": 5, "Archive": 3, "Entwürfe": 1}
    assert all(message[-1] for box in boxes.values() for message in box["messages"])
    listed = store.letterlock("backup list").stdout.splitlines()
    assert listed[1] == "each stays for 30d"
    assert listed[2] == "mail under a policy is gone from the host and from all of them 61d after it was saved (trash)"
    metrics = host.check_output("cat /var/lib/letterlock/metrics/backup.prom")
    assert "letterlock_backup_messages 27" in metrics
    assert "letterlock_backup_last_success_timestamp_seconds" in metrics
    assert host.check_output("systemctl is-enabled letterlock-backup.timer letterlock-backup-check.timer").split() == ["enabled"] * 2


def test_nothing_new_adds_nothing(host, store):
    """The second backup costs the manifests of what changed, and here nothing did."""
    store.backup()
    added = host.check_output("grep '^letterlock_backup_added_bytes' /var/lib/letterlock/metrics/backup.prom").split()[1]
    assert int(added) < 100_000


@pytest.mark.requirement("SEC-1", "SEC-2")
def test_secrets_are_roots_alone(host, store):
    """Not in a command line, the journal, the release or the snapshot, nor readable for anybody else."""
    assert len(host.check_output(f"cat {SECRETS}/password")) == 24
    modes = host.check_output(f"stat --format '%U %a' {SECRETS} {SECRETS}/*").splitlines()
    assert modes[0] == "root 700"
    assert set(modes[1:]) == {"root 600"}
    watch = "for _ in $(seq 100); do cat /proc/[0-9]*/cmdline 2>/dev/null; sleep 0.02; done >/root/seen"
    host.check_output(f"systemctl start --no-block letterlock-backup; {watch}")
    found = f"grep -a -c -F -f {SECRETS}/password"
    assert host.check_output("grep -a -c restic /root/seen") != "0"
    assert host.run(f"{found} /root/seen").stdout.strip() == "0"
    assert host.run(f"journalctl --no-pager --since '-1 hour' | {found} -").stdout.strip() == "0"
    assert host.run(f"grep -r -l -F -f {SECRETS}/password /etc/letterlock/dovecot /var/lib/letterlock").stdout == ""
    store.backup()
    listed = store.restic("ls latest /etc/letterlock --recursive").stdout
    assert "/etc/letterlock/dovecot" in listed
    assert "/etc/letterlock/backup" not in listed
    assert "/etc/letterlock/tls/" not in listed


@pytest.mark.requirement("LOSS-7")
def test_old_snapshots_are_forgotten_and_recorded(host, store, vault):
    """At their time, by name, in the ledger; the newest stays, and a clock that is wrong forgets nothing."""
    name = host.check_output("hostname")
    host.check_output("echo old >/root/old")
    old = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() - 40 * 86400))
    assert store.restic(f'backup --host {name} --tag letterlock --time "{old}" /root/old').rc == 0
    dry = vault.forget("--dry-run")
    assert dry.rc == 0
    assert dry.stdout.count("would forget") == 1
    for clock in ("-2d", "+60d"):
        refused = vault.forget(clock=clock)
        assert refused.rc == 2, refused
        assert "nothing was forgotten" in refused.stderr
    before = store.letterlock("backup list").stdout.splitlines()
    done = vault.forget()
    assert done.rc == 0, done
    after = store.letterlock("backup list").stdout.splitlines()
    assert before[1:] == after
    assert '"kind":"forget"' in vault.host.check_output("cat /var/lib/letterlock/ledger/ledger-*.jsonl").replace(" ", "")


@pytest.mark.requirement("LOSS-6")
def test_a_taken_host_destroys_no_backup(host, store, vault):
    """On an append-only repository it can neither forget nor remove a file; the server forgets, by a sandboxed unit."""
    if not vault.appends_only:
        pytest.skip("the repository is on the host itself")
    files = set(vault.host.check_output(f"find {vault.path} -type f -not -path '*/locks/*'").splitlines())
    refused = store.letterlock("backup forget")
    assert refused.rc == 2, refused
    assert "store forgets the backups of this host" in refused.stderr
    assert store.restic("forget --keep-last 1 --prune").rc != 0
    # Its lock would keep the server waiting for half an hour, and any client may remove locks.
    assert store.restic("unlock --remove-all").rc == 0
    assert files <= set(vault.host.check_output(f"find {vault.path} -type f").splitlines())
    # Nor does it see those of another host.
    other = {"deb12": "deb13", "deb13": "deb12"}[vault.name]
    assert host.run(f"sh -c '{ENVIRONMENT}; RESTIC_REPOSITORY=${{RESTIC_REPOSITORY%/*/mail}}/{other}/mail restic snapshots'").rc != 0
    assert vault.host.run(f"systemctl start letterlock-prune@{vault.name}").rc == 0
    metrics = vault.host.check_output(f"cat /var/lib/letterlock/metrics/backup-{vault.name}.prom")
    assert "letterlock_backup_oldest_snapshot_timestamp_seconds" in metrics
    score = vault.host.check_output(f"systemd-analyze security letterlock-prune@{vault.name} | tail -1")
    assert float(re.search(r"service: ([\d.]+)", score).group(1)) <= 2.0, score
    # What the server wrote, the mail host reads.
    assert "0 failures" in store.backup()


def test_a_repository_that_is_out_of_reach(host, store, vault):
    """It is told within minutes, by name, and the next backup goes through."""
    if not vault.appends_only:
        pytest.skip("the repository is on the host itself")
    host.check_output("nft add table inet out_of_reach && nft add chain inet out_of_reach out '{ type filter hook output priority 0; }' && "
                      "nft add rule inet out_of_reach out tcp dport 8000 reject with tcp reset")
    away = host.run("timeout 200 letterlock backup run")
    host.check_output("nft delete table inet out_of_reach")
    assert away.rc == 1, away
    assert "the repository can't be reached" in away.stderr, away
    assert "0 failures" in store.backup()


@pytest.mark.requirement("LOSS-7", "RET-6")
def test_an_erasure_says_what_backups_still_hold(store):
    """Until the day on which the last snapshot with it is forgotten."""
    done = store.letterlock("erase ghost@letterlock.test --confirm ghost@letterlock.test")
    until = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 31 * 86400))
    assert done.rc == 0, done
    assert f"copies in backups: in snapshots until {until}" in done.stdout, done


@pytest.mark.requirement("LOSS-7", "RET-6")
def test_what_was_erased_is_in_no_snapshot_on_the_day_that_was_printed(host, store, vault):
    """An account's mail, and the backups of that time."""
    name, account = host.check_output("hostname"), "gone@letterlock.test"
    home = f"{store.root}/letterlock.test/gone"
    host.check_output(f"mkdir {home} && echo x >{home}/mail && chown -R --reference={store.root} {home}")
    store.backup()
    assert f"{home}/mail" in store.restic(f"ls latest --recursive {home}").stdout
    said = store.letterlock(f"erase {account} --confirm {account}").stdout
    day = re.search(r"in snapshots until ([\d-]+)", said).group(1)
    store.backup()
    # Of that day's own backup. A moved clock does not move restic's.
    host.check_output("echo that day >/root/old")
    made = store.restic(f"backup --json --host {name} --tag letterlock --time '{day} 00:00:00' /root/old").stdout.splitlines()[-1]
    done = vault.forget(clock="+31d")
    assert done.rc == 0, done
    assert f"{home}/mail" not in vault.restic(f"find --host {name} mail").stdout
    assert vault.restic(f"snapshots --host {name}").stdout.count(name) == 1
    assert vault.restic(f"forget {json.loads(made)['snapshot_id']}").rc == 0
    assert "0 failures" in store.backup()


@pytest.mark.any_format
def test_certificates_and_a_limit_where_the_operator_says_so(host, site, store):
    """The keys of TLS are in the backup, and it takes the seconds that its limit means."""
    site.converge(mail_backup_certificates=True, mail_backup_upload_limit=150)
    file = f"{store.root}/letterlock.test/ada/incompressible"
    host.check_output(f"head -c 1500000 /dev/urandom >{file}")
    begun = time.monotonic()
    store.backup()
    assert time.monotonic() - begun > 1500000 / 1024 / 150 - 1
    listed = store.restic("ls latest --recursive /etc/letterlock/tls").stdout
    assert "/key.pem" in listed, listed
    host.check_output(f"rm {file}")
    site.converge()
    store.backup()
    assert "/etc/letterlock/tls/" not in store.restic("ls latest --recursive /etc/letterlock").stdout


def backs_up_elsewhere(host, store) -> None:
    """Back up to another repository, read it, forget in it; then know the first one again."""
    host.check_output(f"mv {STATE} /root/state.json")
    said = store.backup()
    assert "made the repository" in said
    assert "0 failures" in said
    for command in ("check", "forget", "restore --dry-run"):
        done = store.letterlock(f"backup {command}")
        assert done.rc == 0, done
    host.check_output(f"mv /root/state.json {STATE}")


@pytest.mark.any_format
def test_over_sftp(host, store, site, vault):
    """To an account of another host, whose key is known, by a key of root's; the old repository is told from the new one."""
    if not vault.appends_only:
        pytest.skip("the server is the other scenario's")
    server, keeper = vault.host, f"keeper-{vault.name}"
    host.check_output("ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
    key = server.check_output("cat /etc/ssh/ssh_host_ed25519_key.pub")
    host.check_output(f"echo 'store.letterlock.test {key}' >/root/.ssh/known_hosts")
    public = host.check_output("cat /root/.ssh/id_ed25519.pub")
    server.check_output(
        f"useradd --create-home {keeper} && install -d -o {keeper} -m 0700 /home/{keeper}/.ssh && "
        f"echo '{public}' >/home/{keeper}/.ssh/authorized_keys"
    )
    elsewhere = {"mail_backup_repository": f"sftp:{keeper}@store.letterlock.test:mail", "mail_backup_ca_file": "",
                 "mail_backup_pruned_by": "", "mail_backup_pruner_password": ""}
    site.converge(**elsewhere)
    refused = store.letterlock("backup run")
    assert refused.rc == 1
    assert "mail_backup_repository holds no repository" in refused.stderr, refused
    assert f"remove {STATE}" in refused.stderr
    backs_up_elsewhere(host, store)
    host.check_output("rm /root/.ssh/id_ed25519*")
    site.converge()
    assert "0 failures" in store.backup()


@pytest.mark.any_format
def test_over_s3(host, store, site, vault):
    """To an S3 server of another host, over TLS by the lab's CA; the credentials are in nobody's sight."""
    if not vault.appends_only:
        pytest.skip("the server is the other scenario's")
    secret = vault.host.check_output("/root/s3.sh start")

    def back_up_there(secret: str) -> None:
        site.converge(
            mail_backup_repository=f"s3:https://store.letterlock.test:8443/{vault.name}", mail_backup_pruned_by="",
            mail_backup_pruner_password="",
            mail_backup_environment={"AWS_ACCESS_KEY_ID": "letterlock:backup", "AWS_SECRET_ACCESS_KEY": secret},
        )

    back_up_there(secret)
    backs_up_elsewhere(host, store)
    assert host.run(f"journalctl --no-pager --since '-10 min' | grep -c -F {secret}").stdout.strip() == "0"
    back_up_there("another-secret")
    refused = store.letterlock("backup run")
    assert refused.rc == 1
    assert "does not know the credentials in mail_backup_environment" in refused.stderr, refused
    site.converge()
    assert "0 failures" in store.backup()


@pytest.mark.any_format
@pytest.mark.requirement("HARD-1")
def test_the_units_are_sandboxed(host):
    """By systemd's own score."""
    for unit in ("letterlock-backup", "letterlock-backup-check"):
        score = float(re.search(r"service: ([\d.]+)", host.check_output(f"systemd-analyze security {unit} | tail -1")).group(1))
        assert score <= 2.5, (unit, score)


def test_two_at_once(host, store):
    """The second gives way, and says so by its exit code."""
    both = host.run("flock /var/lib/letterlock/backup/lock sleep 2 & sleep 0.5; letterlock backup run; code=$?; wait; exit $code")
    assert both.rc == 75, both
    assert "another run has held" in both.stderr
    assert store.letterlock("backup list").rc == 0


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.3, 1.8, 2.3])
def test_a_backup_that_is_killed(host, store, seconds):
    """Kill -9 at any moment, restic with it: the next one goes through, dead locks or not."""
    host.run(f"timeout --signal KILL {seconds} letterlock backup run; pkill -KILL -x restic; :")
    assert "0 failures" in store.backup()


@pytest.mark.usefixtures("server_alone")
def test_what_is_wrong_with_a_repository_is_named(host, store, vault):
    """Another password, no repository, another repository: each by the variable, and nothing is made in their place."""
    host.check_output(f"cp -a {SECRETS}/password /root/password && echo another-password-altogether >{SECRETS}/password")
    wrong = store.letterlock("backup run")
    host.check_output(f"cp -a /root/password {SECRETS}/password && rm /root/password")
    assert wrong.rc == 1
    assert "mail_backup_password does not open this repository" in wrong.stderr, wrong
    vault.host.check_output(f"mv {vault.path} {vault.path}-away && mkdir {vault.path} && chown --reference {vault.path}-away {vault.path}")
    empty = store.letterlock("backup run")
    made = store.restic("init")
    another = store.letterlock("backup run")
    # In its place again before anything is said of it: the tests after this one need it.
    vault.host.check_output(f"rm -rf {vault.path} && mv {vault.path}-away {vault.path}")
    assert empty.rc == 1
    assert "mail_backup_repository holds no repository" in empty.stderr, empty
    assert made.rc == 0, made
    assert another.rc == 1
    assert "is not the one that this host's backups went to" in another.stderr, another
    assert store.letterlock("backup run").rc == 0


@pytest.mark.usefixtures("server_alone")
def test_a_repository_that_is_full(host, store, vault):
    """It is told, nothing that was there is lost, and with room the next backup goes through."""
    path, small, server = vault.path, f"{vault.path}-small", vault.host
    # The server sees from its sandbox what was mounted before it started; whom else it serves tries again.
    look = "systemctl restart restic-rest-server" if vault.appends_only else "true"
    room = int(server.check_output(f"du -sk {path}").split()[0]) + 300
    server.check_output(
        f"mkdir {small} && mount -t tmpfs -o size={room}k none {small} && cp -a {path}/. {small}/ && "
        f"chmod --reference {path} {small} && chown --reference {path} {small} && mount --bind {small} {path} && {look}"
    )
    host.check_output(f"head -c 8000000 /dev/urandom | base64 | doveadm save -u {USERS[1]} -m INBOX")
    began = time.monotonic()
    full = store.letterlock("backup run")
    took = time.monotonic() - began
    server.check_output(f"umount {path} && umount {small} && rmdir {small} && {look}")
    assert full.rc == 1, full
    assert "disk is full" in full.stderr, full
    # By itself restic tries for a quarter of an hour to send what is refused.
    assert took < 180, full
    assert "0 failures" in store.backup()
    host.check_output(f"doveadm expunge -u {USERS[1]} mailbox INBOX larger 500000")


@pytest.mark.usefixtures("server_alone")
def test_a_flipped_byte_and_a_missing_pack_are_found(store, vault):
    """By the check, which reads what it says it reads."""
    assert store.letterlock("backup check").rc == 0
    pack = vault.host.check_output(f"find {vault.path}/data -type f -printf '%s %p\\n' | sort -n | tail -1 | cut -d' ' -f2")
    # Beside this repository: the server has another one, whose test may be at the same point.
    whole, name = f"{vault.path}-pack", pack.rsplit("/", 1)[1]
    vault.host.check_output(f"cp -a {pack} {whole}; chmod u+w {pack}; printf X | dd of={pack} bs=1 seek=1000 conv=notrunc status=none")
    for spoil, saying in (("true", f"{name}|ciphertext verification failed"), (f"rm -f {pack}", name)):
        vault.host.check_output(spoil)
        found = store.letterlock("backup check")
        assert found.rc == 1, found
        assert "the repository is damaged" in found.stderr
        assert re.search(saying, found.stderr), found.stderr
    vault.host.check_output(f"mv {whole} {pack}")
    assert store.letterlock("backup check").rc == 0
