"""Work in batches, on a few threads, in memory that does not grow with the work."""

from __future__ import annotations

import json
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TextIO

# Dovecot works for one account after another; on more than one core two iterations take half the time. More than four
# would leave a busy host's users too little.
WORKERS = max(1, min(4, len(os.sched_getaffinity(0))))


def chunks(items: Iterable, size: int) -> Iterator[list]:
    """Yield *items* in lists of at most *size*."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def bounded_map(work: Callable, items: Iterable) -> Iterator:
    """Yield work(item) for *items* in order, on WORKERS threads that are never far ahead: memory stays flat."""
    under_way: deque = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) > WORKERS:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def write_lines(spool: TextIO, lines: Iterable[dict]) -> None:
    """Append *lines* to *spool*."""
    spool.writelines(json.dumps(line) + "\n" for line in lines)


def read_lines(spool: TextIO) -> Iterator[dict]:
    """Yield the lines of *spool* from its beginning."""
    spool.flush()
    spool.seek(0)
    for line in spool:
        yield json.loads(line)
