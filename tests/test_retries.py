"""Jobs that were lost with their worker: run again by themselves, and last."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from prect.cluster import cluster
from prect.retries import run_retrying

Words = tuple[str, ...]


class Losing:
    """Stands in for `run_bounded`: whatever shares a run with a deadly job next to it is lost."""

    def __init__(self) -> None:
        self.rounds: list[tuple[int | None, list[Words]]] = []

    def __call__(
        self,
        _: object,
        function: Callable[[Words], Any],
        jobs: Iterable[Words],
        at_once: int | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[Words, Any]]:
        given: list[Words] = []
        self.rounds.append((at_once, given))
        waited = False
        for job in jobs:
            if stop is not None and stop():
                return
            given.append(job)
            deadly = "deadly" in job
            yield job, None if deadly or (waited and at_once is None) else function(job)
            waited = deadly


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Losing:
    stand_in = Losing()
    monkeypatch.setattr("prect.retries.run_bounded", stand_in)
    return stand_in


def run(jobs: Iterable[Words], **options: Any) -> list[tuple[Words, int | None]]:
    client: Any = None
    return list(run_retrying(client, len, jobs, **options))


def test_nothing_runs_twice_where_no_worker_dies(losing: Losing) -> None:
    jobs: list[Words] = [("a",), (), ("b", "c")]
    assert run(iter(jobs)) == [(("a",), 1), ((), 0), (("b", "c"), 2)]  # 0 is an outcome
    assert losing.rounds == [(None, jobs), (1, [])]


def test_the_guilty_job_alone_has_no_outcome(losing: Losing) -> None:
    found = run([("a",), ("deadly",), ("b",), ("c",)])
    assert found == [(("a",), 1), (("c",), 1), (("deadly",), None), (("b",), 1)]
    assert losing.rounds[1] == (1, [("deadly",), ("b",)])


def test_the_parts_of_a_lost_job_run_in_its_place(losing: Losing) -> None:
    found = run([("a", "deadly", "b"), ("c", "d")], split=lambda job: ((word,) for word in job))
    assert found == [
        (("a",), 1),
        (("deadly",), None),
        (("b",), 1),
        (("c",), 1),
        (("d",), 1),
    ]
    assert losing.rounds[0] == (None, [("a", "deadly", "b"), ("c", "d")])


def test_whoever_stops_it_stops_the_second_try_too(losing: Losing) -> None:
    asked = iter([False, False, True])
    assert run([("deadly",), ("b",)], stop=lambda: next(asked)) == []
    assert [len(given) for _, given in losing.rounds] == [2, 0]


def test_jobs_are_asked_for_as_they_are_run(losing: Losing) -> None:
    def endless() -> Iterator[Words]:
        while True:
            yield ("a",)

    client: Any = None
    found = run_retrying(client, len, endless())
    assert [next(found) for _ in range(3)] == [(("a",), 1)] * 3
    assert len(losing.rounds[0][1]) == 3


def square(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def test_a_job_that_kills_its_worker_takes_no_other_with_it() -> None:
    with cluster(1) as client:
        found = dict(run_retrying(client, square, range(6)))
    assert found == {0: 0, 1: 1, 2: None, 3: 9, 4: 16, 5: 25}
