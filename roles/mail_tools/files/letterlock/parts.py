"""Large files in parts, beside each other: what changes at its end costs a backup its last part, and not all of it.

A file of at most BYTES is itself. A larger one is `NAME.part000000` and so on.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BYTES, SUFFIX = 128 * 1024, ".part"


def part_of(file: Path, number: int) -> Path:
    """Return where a part of a large *file* lies; the first has the *number* 0."""
    return file.with_name(f"{file.name}{SUFFIX}{number:06}")


def whole(name: str) -> str:
    """Return the name of the file of which *name* is a part, or that it is.

    >>> whole("ada.json.part000001"), whole("ada.json")
    ('ada.json', 'ada.json')
    """
    head, suffix, number = name.rpartition(SUFFIX)
    return head if suffix and number.isdigit() else name


def of(file: Path) -> list[Path]:
    """Return *file*, or its parts in their order, or nothing; both only where a write was interrupted."""
    parts = itertools.takewhile(Path.is_file, (part_of(file, number) for number in itertools.count()))
    return [*([file] if file.is_file() else []), *parts]


def write(file: Path, size: int, read: Callable[[], bytes]) -> Iterator[Path]:
    """Write *file*, of *size* octets, BYTES of which each *read* returns; yield those parts that were not so already."""
    there = of(file)
    wanted = [file] if size <= BYTES else [part_of(file, number) for number in range(math.ceil(size / BYTES))]
    for part in wanted:
        text = read()
        if part not in there or part.read_bytes() != text:
            part.write_bytes(text)
            yield part
    for part in set(there) - set(wanted):
        part.unlink()


def remove(file: Path) -> None:
    """Remove *file*, if it is there."""
    for part in of(file):
        part.unlink()


def join(directory: Path) -> None:
    """Make whole what lies in parts below *directory*, with times, mode and owner of the newest part."""
    for first in sorted(directory.rglob(f"*{SUFFIX}{0:06}")):
        file = first.with_name(whole(first.name))
        parts = [part for part in of(file) if part != file]
        newest = max(parts, key=lambda part: part.stat().st_mtime_ns)
        with file.open("wb") as target:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target)
        shutil.copystat(newest, file)
        os.chown(file, newest.stat().st_uid, newest.stat().st_gid)
        for part in parts:
            part.unlink()
