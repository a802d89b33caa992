"""What a run leaves for the next."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from letterlock import locks, remembered


def test_runs_at_the_same_time_lose_none_of_their_news(tmp_path, monkeypatch):
    """Each reads, changes and writes alone."""
    monkeypatch.setattr(locks.time, "sleep", lambda _seconds: None)
    file = tmp_path / "state" / "figures.json"

    def add(number: int) -> None:
        with remembered.changed(file) as known:
            known[str(number)] = number

    with ThreadPoolExecutor(8) as several:
        list(several.map(add, range(16)))
    assert remembered.read(file) == {str(number): number for number in range(16)}


def test_a_run_that_fails_leaves_what_was(tmp_path):
    """Nothing half done is remembered."""
    file = tmp_path / "figures.json"
    with remembered.changed(file) as known:
        known["good"] = 1
    try:
        with remembered.changed(file) as known:
            known["bad"] = 1
            raise RuntimeError
    except RuntimeError:
        pass
    assert remembered.read(file) == {"good": 1}
