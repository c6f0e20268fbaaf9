"""What ranks agree on before a step, on one of them, and what is odd about a loss."""

from __future__ import annotations

import math
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prect.train.guards.guard import Agreement, Guard, agree
from prect.train.guards.watchdog import Phase, Report, Watchdog, stalled
from prect.train.report.metrics import Timing, stragglers

NAN, INF = math.nan, math.inf


def agree_alone(loss: float, norm: float, stop: signal.Signals | None = None) -> Agreement:
    return agree(torch.tensor(loss), torch.tensor(norm), stop, False, 0, 1)


@pytest.mark.parametrize(
    ("loss", "norm", "bad", "bad_loss"),
    [
        (0.5, 1.0, (), False),
        (NAN, NAN, (0,), True),
        (INF, 1.0, (0,), True),
        (0.5, INF, (0,), False),
        (0.5, NAN, (0,), False),
    ],
)
def test_a_step_is_good_when_loss_and_gradient_are_finite(
    loss: float, norm: float, bad: tuple[int, ...], bad_loss: bool
) -> None:
    found = agree_alone(loss, norm)
    assert (found.bad_ranks, found.bad_loss, found.stop) == (bad, bad_loss, None)
    assert math.isnan(found.loss) if bad_loss else found.loss == pytest.approx(0.5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_agreed_upon(number: signal.Signals) -> None:
    assert agree_alone(1.0, 1.0, number).stop == number


def followed(losses: list[float], deviations: float = 6.0) -> tuple[Guard, list[int]]:
    guard = Guard(deviations)
    return guard, [i for i, loss in enumerate(losses) if guard.follow(loss) is not None]


def noise(count: int) -> list[float]:
    generator = torch.Generator().manual_seed(4)
    return (0.5 + 0.02 * torch.randn(count, generator=generator)).tolist()


def test_a_spike_is_told_apart_from_noise_and_descent() -> None:
    calm = noise(400)
    assert followed(calm)[1] == []
    falling = [loss + 2 * math.exp(-i / 40) for i, loss in enumerate(calm)]
    assert followed(falling)[1] == []
    spiked = [*calm[:200], 1.5, *calm[200:]]
    guard, found = followed(spiked)
    assert found == [200]
    assert guard.spikes == 1
    assert followed(spiked, deviations=0)[1] == []
    assert followed([0.5, 9.0, 0.5])[1] == []  # nothing is known yet of what is usual


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200), st.integers(0, 199))
def test_a_guard_goes_on_where_it_was(losses: list[float], at: int) -> None:
    whole = Guard(6.0)
    parts = Guard(6.0)
    for number, loss in enumerate(losses):
        if number == at:
            later = Guard(6.0)
            later.go_on_from(parts.state())
            parts = later
        assert whole.follow(loss) == parts.follow(loss)
    assert whole.state() == parts.state()


def test_mean_and_variance_are_those_of_the_losses_at_first() -> None:
    losses = noise(30)
    guard, _ = followed(losses)
    assert guard.mean == pytest.approx(sum(losses) / 30)
    spread = torch.tensor(losses, dtype=torch.float64).var(correction=0)
    assert guard.variance == pytest.approx(float(spread))


def timing(own_s: float) -> Timing:
    return Timing(1.0, own_s / 2, own_s / 2, 1.0, 1.0, 1.0, 0.0)


def test_a_straggler_is_who_needs_longer_than_most() -> None:
    assert stragglers([timing(0.5)] * 8, 1.5) == {}
    found = stragglers([timing(0.5)] * 7 + [timing(0.9)], 1.5)
    assert found == {7: pytest.approx(1.8)}
    assert stragglers([timing(0.9)], 1.5) == {}
    assert stragglers([timing(0.001)] * 3 + [timing(0.01)], 1.5) == {}  # nothing of a step


class Board:
    """A store in this process."""

    def __init__(self) -> None:
        self.words: dict[str, bytes] = {}

    def set(self, key: str, value: str, /) -> None:
        self.words[key] = value.encode()

    def get(self, key: str, /) -> bytes:
        return self.words[key]

    def check(self, keys: list[str], /) -> bool:
        return all(key in self.words for key in keys)


def test_the_watchdog_ends_a_run_that_does_not_move_and_names_the_one_behind() -> None:
    import threading

    board, told, ended = Board(), [], threading.Event()

    def end(text: str) -> None:
        told.append(text)
        ended.set()

    dogs = [Watchdog(board, rank, 3, 0.4, end=end) for rank in range(3)]
    for dog in dogs:
        dog.start()
    for dog in dogs:
        dog.beat(7, Phase.WAITING)
    for dog in (dogs[0], dogs[2]):  # they wait in a collective for the other one
        dog.beat(7, Phase.COMPUTING)
    assert ended.wait(5)
    for dog in dogs:
        dog.stop()
    assert "no progress for 0.4 s: the others wait for rank 1 on" in told[0]
    assert "waiting for data at step 7" in told[0]


def test_the_watchdog_leaves_a_run_alone_that_moves() -> None:
    import time

    told: list[str] = []
    dog = Watchdog(Board(), 0, 1, 0.3, end=told.append)
    dog.start()
    for step in range(12):
        dog.beat(step, Phase.COMPUTING)
        time.sleep(0.05)
    dog.stop()
    assert told == []


def report(step: int, phase: Phase, told: float = 100.0, moved: int = 0) -> Report:
    return Report(step, phase, moved, 30.0, "host", told)


def test_who_is_silent_is_named_before_who_is_behind() -> None:
    here = report(5, Phase.COMPUTING)
    said = stalled({0: here, 1: report(5, Phase.COMPUTING, told=60.0)}, 2, 30, 5)
    assert "rank 1 on host, computing at step 5" in said
    assert "not been heard of for 40 s" in said
    assert "rank 1 has never been heard of" in stalled({0: here}, 2, 30, 5)
    said = stalled({0: here, 1: report(4, Phase.REPORTING)}, 2, 30, 5)
    assert "the others wait for rank 1 on host, evaluating, logging or saving at step 4" in said
    assert "all 2 processes are at the same place" in stalled({0: here, 1: here}, 2, 30, 5)
