"""Faults of backups, above all a backup that outlives what retention promises."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mail_tools" / "files"))

from letterlock import durations, policies  # found on the path that the line above adds

SHORTEST_PASSWORD = 16
# What ends up in a line of a unit or of an environment.
LINES = (
    "mail_backup_repository", "mail_backup_password", "mail_backup_pruner_password", "mail_backup_schedule",
    "mail_backup_check_schedule", "mail_backup_randomized_delay", "mail_backup_metrics_file",
)
REPOSITORY = re.compile(r"/.*|(sftp|rest|s3|b2|azure|gs|swift|rclone):.+")


def text_faults(variables: dict) -> list[str]:
    """Return what can't stand in a unit or in the environment."""
    found = [
        f"{name}: control characters can't stand there"
        for name in LINES
        if re.search(r"[\x00-\x1f\x7f]", variables[name])
    ]
    for name, value in variables["mail_backup_environment"].items():
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name) or re.search(r"[\x00-\x1f\x7f]", str(value)):
            found.append(f"mail_backup_environment: {name}: not the name of an environment variable, or a value with control characters")
        if name in ("RESTIC_PASSWORD", "RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND", "RESTIC_REPOSITORY", "RESTIC_REPOSITORY_FILE"):
            found.append(f"mail_backup_environment: {name}: set by mail_backup_password and mail_backup_repository")
    return found


def password_faults(variables: dict) -> list[str]:
    """Return what is wrong with the repository's passwords."""
    found = []
    if len(variables["mail_backup_password"]) < SHORTEST_PASSWORD:
        found.append(
            f"mail_backup_password: must have at least {SHORTEST_PASSWORD} characters; it is all that keeps a stolen repository shut"
        )
    if 0 < len(variables["mail_backup_pruner_password"]) < SHORTEST_PASSWORD:
        found.append(f"mail_backup_pruner_password: must have at least {SHORTEST_PASSWORD} characters, or be empty")
    if not variables["mail_backup_escrow"].strip():
        found.append("mail_backup_escrow: say where the password is kept beside the vault; who loses it has lost every backup")
    return found


def ca_faults(variables: dict) -> list[str]:
    """Return why the CA of the repository's server can't be brought to the host. The kit's own is made later in the same run."""
    file = Path(variables["mail_backup_ca_file"])
    made = Path(variables["mail_tls_ca_directory"]) / "ca.crt"
    if not variables["mail_backup_ca_file"] or file.is_file() or (variables["mail_tls_source"] == "private_ca" and file == made):
        return []
    return [f"mail_backup_ca_file: there is no file {file} on the host that runs the playbook"]


def promise_faults(variables: dict) -> list[str]:
    """Return why mail is not gone everywhere when mail_backup_gone_after says."""
    if not variables["mail_backup_gone_after"]:
        return []
    promised = durations.parse_duration(variables["mail_backup_gone_after"])
    folders = policies.folders_of(variables["dovecot_mailboxes"])
    parsed, _ = policies.parse_policies(variables.get("mail_retention_policies", []), folders, [])
    found = policies.gone_everywhere_after(parsed, durations.parse_duration(variables["mail_backup_keep_for"]))
    if found is None:
        return ["mail_backup_gone_after: no policy of mail_retention_policies has keep_for, so nothing is ever gone"]
    if found[0] <= promised:
        return []
    return [(
        f"mail_backup_gone_after: mail under the policy {found[1]!r} is gone from all backups only after "
        f"{durations.show_duration(found[0])}: its keep_for, mail_backup_keep_for ({variables['mail_backup_keep_for']}) and the "
        "day between two runs; shorten one of them, or promise no less than that"
    )]


def faults(variables: dict, _host: dict) -> list[str]:
    """Return the role's faults."""
    repository = variables["mail_backup_repository"]
    if not repository:
        return []
    found = text_faults(variables)
    if not REPOSITORY.fullmatch(repository):
        kind = repository.split(":")[0]
        found.append(f"mail_backup_repository: {kind!r} is neither an absolute path nor a kind of repository that restic knows")
    found += password_faults(variables) + ca_faults(variables)
    lasting = []
    for name in ("mail_backup_keep_for", "mail_backup_gone_after"):
        try:
            if variables[name] or name == "mail_backup_keep_for":
                durations.parse_duration(variables[name])
        except ValueError as error:
            lasting.append(f"{name}: {error}")
    found += lasting or promise_faults(variables)
    if not 1 <= variables["mail_backup_check_percent"] <= 100:
        found.append(f"mail_backup_check_percent: {variables['mail_backup_check_percent']} is not a share in percent, 1 to 100")
    if variables["mail_backup_upload_limit"] < 0:
        found.append("mail_backup_upload_limit: must be at least 0")
    return found
