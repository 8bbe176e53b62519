# SPDX-License-Identifier: Apache-2.0
"""Feedback, simulated: the real planner of every rank, and GPUs whose speeds it has to find out."""

import itertools

import numpy as np
import pytest
from test_replica_steps import model, placed, planners

from shplb.planner import LEAST_SPEED, MOST_SPEED, NOMINAL_SPEED
from shplb.rank_speeds import RankSpeeds

RANKS = 4
PROMPTS = [(0, 8192), (8192, 8192), (65536, 8192), (122880, 8192), (32768, 8192)]


class Server:
    """Ranks that time a step, tell each other, and plan the next one; ``speed``: what their GPUs really do."""

    def __init__(self, speed: np.ndarray, noise: float, groups: int = 8, launch_ns: int = 0) -> None:
        keep = model(groups, 4, seed=1, spread=0.4)
        self.planners = planners(keep, placed(keep, groups, RANKS))
        self.speeds = [RankSpeeds(RANKS) for _ in range(RANKS)]
        self.speed, self.noise, self.launch_ns = speed, noise, launch_ns
        self.rng = np.random.default_rng(1)
        self.prompts = itertools.cycle(PROMPTS)

    def step(self) -> tuple[float, np.ndarray]:
        """Max/mean over ranks of what attention took, layer by layer, and the speeds that came out."""
        prefix, new = (np.array([part]) for part in next(self.prompts))
        plans = [planner.predict(prefix, new, "sparse") for planner in self.planners]
        assert len({plan.rank_makespan_ns.tobytes() for plan in plans}) == 1
        nominal = plans[0].rank_makespan_ns * self.speeds[0].values // NOMINAL_SPEED
        took = (nominal / self.speed + self.launch_ns) / 1e6 * self.rng.normal(1.0, self.noise, nominal.shape)
        for planner, speeds in zip(self.planners, self.speeds, strict=True):
            if speeds.update(took, nominal):
                planner.set_rank_speeds(speeds.values)
        values = [speeds.values for speeds in self.speeds]
        assert len({each.tobytes() for each in values}) == 1
        return float(took.max(axis=1).sum() / took.mean(axis=1).sum()), values[0]


@pytest.mark.parametrize("slow", range(RANKS))
def test_a_slow_rank_is_found_and_gets_less(slow: int) -> None:
    speed = np.ones(RANKS)
    speed[slow] = 0.9
    server = Server(speed, noise=0.02)
    found = [server.step() for _ in range(60)]
    imbalance, speeds = np.array([each[0] for each in found]), np.array([each[1] for each in found])
    # A tenth slower, so all wait: 0.9 of mean speed (0.975) makes 1.08.
    assert imbalance[0] > 1.06
    assert imbalance[40:].mean() < 1.03  # most of it noise
    relative = speeds / speeds.mean(axis=1, keepdims=True) * speed.mean()
    assert np.abs(relative[30:] - speed).max() < 0.015
    steps = np.abs(np.diff(speeds, axis=0, prepend=NOMINAL_SPEED)) / NOMINAL_SPEED
    assert steps.max() <= 0.021
    # It gets there from one side.
    assert (relative[:30, slow] > 0.885).all()


def test_without_noise_it_comes_to_rest_at_an_even_balance() -> None:
    server = Server(np.array([1.0, 0.9, 1.05, 1.0]), noise=0.0)
    found = [server.step() for _ in range(100)]
    assert np.mean([imbalance for imbalance, _ in found[80:]]) < 1.01 < 1.08 < found[0][0]
    assert np.ptp(np.array([speeds for _, speeds in found[80:]]), axis=0).max() <= 1


def test_launches_that_the_model_does_not_know_make_no_rank_faster() -> None:
    """In short steps they are most of the time, and equal on all ranks however unequal the work is."""
    short = Server(np.ones(RANKS), noise=0.02, launch_ns=20_000)
    short.prompts = itertools.cycle([(0, 1024), (0, 2048), (2048, 1024)])
    for _ in range(100):
        _, values = short.step()
    assert values.tolist() == [NOMINAL_SPEED] * RANKS
    long = Server(np.ones(RANKS), noise=0.02, launch_ns=20_000)
    for _ in range(100):
        _, values = long.step()
    assert 0 < np.abs(values - NOMINAL_SPEED).max() < 0.02 * NOMINAL_SPEED


def test_what_all_ranks_have_in_common_is_left_alone() -> None:
    for factor in (0.4, 1.0, 3.0):
        server = Server(np.full(RANKS, factor), noise=0.0)
        for _ in range(10):
            _, values = server.step()
        assert np.abs(values - NOMINAL_SPEED).max() <= 1


def test_noise_alone_moves_speeds_by_little() -> None:
    server = Server(np.ones(RANKS), noise=0.05)
    values = np.array([server.step()[1] for _ in range(200)])
    assert 0 < np.abs(values - NOMINAL_SPEED).max() < 0.02 * NOMINAL_SPEED


def test_one_odd_sample_does_little_and_many_stop_at_the_bound() -> None:
    speeds = RankSpeeds(2)
    nominal = np.full((3, 2), 1_000_000)
    odd = np.array([[1.0, 100.0]] * 3)
    assert speeds.update(odd, nominal)
    assert np.abs(speeds.values - NOMINAL_SPEED).max() <= 0.02 * NOMINAL_SPEED + 1
    for _ in range(100):
        speeds.update(odd, nominal)
    assert speeds.values.tolist() == [MOST_SPEED, LEAST_SPEED]
    assert not speeds.update(odd, nominal)


GOOD = np.array([[1.0, 2.0], [1.0, 2.0]])


@pytest.mark.parametrize(
    "measured",
    [
        np.zeros((2, 2)),
        np.array([[0.0, 2.0], [0.0, 2.0]]),
        np.array([[1.0, np.nan], [1.0, 2.0]]),
        np.array([[np.inf, 2.0], [1.0, 2.0]]),
        np.array([[-1.0, 2.0], [5.0, 2.0]]),
        np.array([[1.0], [1.0]]),
        np.full((2, 2), 1e-9),
    ],
)
def test_a_bad_sample_changes_nothing(measured: np.ndarray) -> None:
    nominal = np.full((2, 2), 1_000_000)
    speeds, untouched = RankSpeeds(2), RankSpeeds(2)
    for state in (speeds, untouched):
        assert state.update(GOOD, nominal)
    assert not speeds.update(measured, nominal)
    assert not speeds.update(GOOD, np.zeros((2, 2), dtype=np.int64))
    # Not even what rounding hides.
    for state in (speeds, untouched):
        state.update(GOOD, nominal)
    assert speeds.values.tolist() == untouched.values.tolist() != [NOMINAL_SPEED] * 2
