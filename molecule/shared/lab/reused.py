"""Runs on a host: a backup during which the number of a file that was read passes to a new one; prints what a restore makes of it.

The output is JSON, {"restic": ..., "kit": ..., "chosen": ...}, {file: [text, links]} by restic's own restore, by the kit's, and by the
kit's of two chosen folders, as of two accounts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "/usr/lib/letterlock")
from letterlock import links, restic

# While restic waits for these to be uploaded, it has read what is before them, and not looked at what comes after.
FILES, OCTETS, UPLOAD_KIB = 8, 8 << 20, 8000
MOST_TRIES = 5000
MESSAGES = ("z/1", "z/2")


def begin(tree: Path, engine: restic.Restic) -> subprocess.Popen:
    """Begin a backup of *tree*; return it when `a/list` was read."""
    process = subprocess.Popen(
        ["restic", "backup", "--json", "--verbose=2", "--limit-upload", str(UPLOAD_KIB), str(tree)],
        env=engine.environment, stdout=subprocess.PIPE, text=True,
    )
    for line in process.stdout:
        if json.loads(line).get("item") == str(tree / "a/list"):
            return process
    raise AssertionError(f"restic has not read the list: {process.wait()}")


def pass_on(tree: Path, number: int) -> None:
    """Put a new file with the inode *number* of a removed one in the place of both messages."""
    for attempt in range(MOST_TRIES):
        made = tree / f"new-{attempt}"
        made.write_text("a message")
        if made.stat().st_ino == number:
            break
    else:
        raise AssertionError(f"the number {number} was not given to a new file")
    os.link(made, tree / "linked")
    made.rename(tree / MESSAGES[0])
    (tree / "linked").rename(tree / MESSAGES[1])


def found(root: Path, tree: Path) -> dict[str, list]:
    """Return {file: [text, links]} of what was restored to *root*."""
    files = {name: root / str(tree / name)[1:] for name in ("a/list", *MESSAGES)}
    return {name: [file.read_text(), file.stat().st_nlink] if file.exists() else ["", 0] for name, file in files.items()}


def main() -> None:
    """Do it, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir="/root") as name:
        place = Path(name)
        tree = place / "tree"
        for folder in ("a", "m", "z"):
            (tree / folder).mkdir(parents=True)
        (tree / "a/list").write_text("a list of UIDs")
        for number in range(FILES):
            (tree / "m" / str(number)).write_bytes(os.urandom(OCTETS))
        for message in MESSAGES:
            (tree / message).touch()
        os.environ |= {"RESTIC_REPOSITORY": str(place / "repository"), "RESTIC_PASSWORD": "none"}
        engine = restic.Restic()
        engine.run("init")
        process = begin(tree, engine)
        number = (tree / "a/list").stat().st_ino
        (tree / "a/list").unlink()
        pass_on(tree, number)
        process.communicate()
        assert process.returncode == 0
        engine.restore("latest", place / "restic", [str(tree)])
        links.restore(engine, "latest", place / "kit", [tree])
        links.restore(engine, "latest", place / "chosen", [tree / "a", tree / "z"])
        print(json.dumps({how: found(place / how, tree) for how in ("restic", "kit", "chosen")}))


main()
