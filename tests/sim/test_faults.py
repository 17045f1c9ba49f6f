"""The whole control plane under faults, by seed: elections, the fence, control, agents and their journals.

A seed that breaks a law is printed with what happened before; `pytest tests/sim --seeds 4711:4712` plays it again.
"""

from __future__ import annotations

import pytest
import structlog
from sim_cluster import BUGS, Cluster, LawBroken

PARTS = 10


@pytest.fixture(autouse=True)
def quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def seeds_of(config: pytest.Config) -> range:
    first, _, end = str(config.getoption("--seeds")).partition(":")
    return range(int(first), int(end)) if end else range(int(first))


@pytest.mark.parametrize("part", range(PARTS))
def test_the_laws_hold_whatever_goes_wrong(part: int, request: pytest.FixtureRequest) -> None:
    for seed in seeds_of(request.config)[part::PARTS]:
        Cluster(seed).run()


def test_a_seed_replays_exactly() -> None:
    stories = []
    for _ in range(2):
        cluster = Cluster(7)
        cluster.run()
        stories.append(list(cluster.world.story))
    assert stories[0] == stories[1]


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """A test of the test: in fewer than 200 seeds."""
    for seed in range(200):
        try:
            Cluster(seed, bug).run()
        except LawBroken:
            return
    raise AssertionError(f"{bug} was not found in 200 seeds")
