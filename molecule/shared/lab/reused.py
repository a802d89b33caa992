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
# Many, for others on the host make files, too, and ext4 without a journal gives a number that was just freed only when its group of
# numbers, of some thousands, has no other.
LISTS, MOST_TRIES = 100, 50_000
MESSAGES = ("z/1", "z/2")


def begin(tree: Path, engine: restic.Restic) -> subprocess.Popen:
    """Begin a backup of *tree*; return it when all of `a` was read."""
    process = subprocess.Popen(
        ["restic", "backup", "--json", "--verbose=2", "--limit-upload", str(UPLOAD_KIB), str(tree)],
        env=engine.environment, stdout=subprocess.PIPE, text=True,
    )
    waited_for = {str(tree / "a" / str(number)) for number in range(LISTS)}
    for line in process.stdout:
        waited_for.discard(json.loads(line).get("item"))
        if not waited_for:
            return process
    raise AssertionError(f"restic has not read the lists: {process.wait()}")


def pass_on(tree: Path) -> str:
    """Put a new file with the inode number of a removed list in the place of both messages; return the list's name."""
    numbers = {file.stat().st_ino: file.name for file in (tree / "a").iterdir()}
    for name in numbers.values():
        (tree / "a" / name).unlink()
    for attempt in range(MOST_TRIES):
        made = tree / "a" / f"new-{attempt}"
        made.touch()
        number = made.stat().st_ino
        if number in numbers:
            break
    else:
        raise AssertionError(f"no number of {LISTS} was given to one of {MOST_TRIES} new files")
    made.write_text("a message")
    os.link(made, tree / "linked")
    made.rename(tree / MESSAGES[0])
    (tree / "linked").rename(tree / MESSAGES[1])
    return numbers[number]


def found(root: Path, tree: Path, name: str) -> dict[str, list]:
    """Return {"list" or message: [text, links]} of what was restored to *root*, of the list *name*."""
    files = {what: root / str(tree / file)[1:] for what, file in (("list", f"a/{name}"), *zip(MESSAGES, MESSAGES, strict=True))}
    return {what: [file.read_text(), file.stat().st_nlink] if file.exists() else ["", 0] for what, file in files.items()}


def main() -> None:
    """Do it, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir="/root") as name:
        place = Path(name)
        tree = place / "tree"
        for folder in ("a", "m", "z"):
            (tree / folder).mkdir(parents=True)
        for number in range(LISTS):
            (tree / "a" / str(number)).write_text("a list of UIDs")
        for number in range(FILES):
            (tree / "m" / str(number)).write_bytes(os.urandom(OCTETS))
        for message in MESSAGES:
            (tree / message).touch()
        os.environ |= {"RESTIC_REPOSITORY": str(place / "repository"), "RESTIC_PASSWORD": "none"}
        engine = restic.Restic()
        engine.run("init")
        process = begin(tree, engine)
        try:
            reused = pass_on(tree)
        finally:
            process.communicate()
        assert process.returncode == 0
        engine.restore("latest", place / "restic", [str(tree)])
        links.restore(engine, "latest", place / "kit", [tree])
        links.restore(engine, "latest", place / "chosen", [tree / "a", tree / "z"])
        print(json.dumps({how: found(place / how, tree, reused) for how in ("restic", "kit", "chosen")}))


main()
