"""Whatever happens, in whatever order: nobody borrows beyond the limits, and what is kept for owners is kept.

The law is written down here a second time, over the shares of commitments alone. That the test would find a
scheduler that breaks it is tested too, by planting the faults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from control_rules import ClusterRules
from control_world import KEYS, World, offer, spec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test

from lavalite.control import limits, quotas
from lavalite.control.audit import audit
from lavalite.control.events import CancelRequested, DrainRequested, RequeueRequested, ResumeRequested, Specs
from lavalite.control.settings import Settings
from lavalite.control.usage import Usage
from lavalite.model.job import Array, Gang
from lavalite.model.parts import Part
from lavalite.model.selector import Selector
from lavalite.model.specs import Fairshare, Limits, PoolSpec, QueueSpec, Quota

GROUPS = ("a", "b", "c")
NODES = {"n1": "east", "n2": "west"}
GPUS = {"n1": 6, "n2": 4}
MOST_TASKS = {"ada": 3, "bob": 5}


def quota(nominal: int, borrow: int | None, lend: int | None) -> dict[str, Quota]:
    return {"gpu": Quota(nominal * 1000, _milli(borrow), _milli(lend))}


def _milli(amount: int | None) -> int | None:
    return None if amount is None else amount * 1000


def specs(quotas_: list[tuple[int, int | None, int | None]]) -> Specs:
    """Four quotas: of a and b in east, of a and c in west, one cohort."""
    ours = [quota(n, b, None if lend is None else min(lend, n)) for n, b, lend in quotas_]
    gpu = ("gpu",)
    pools = {
        "east": PoolSpec("east", Selector.parse("n1"), gpu, True, quota={"a": ours[0], "b": ours[1]}, cohort="site"),
        "west": PoolSpec("west", Selector.parse("n2"), gpu, quota={"a": ours[2], "c": ours[3]}, cohort="site"),
    }
    limit = Limits(per_user={"tasks": 9}, users={user: {"tasks": most} for user, most in MOST_TASKS.items()})
    queues = {
        "normal": QueueSpec("normal", default=True, fairshare=Fairshare(60), limits=limit),
        "urgent": QueueSpec("urgent", 50, limits=limit),
    }
    return Specs(pools, queues)


QUOTAS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, None]), st.sampled_from([0, 1, None])),
    min_size=4,
    max_size=4,
)


class Cluster(ClusterRules):
    """Random submits, ends, drains, quotas and leaders; `over` is by how much the law was broken, by what has changed
    under it: a new quota, fewer GPUs. That never grows by itself."""

    @initialize(quotas_=QUOTAS)
    def begin(self, quotas_: list[tuple[int, int | None, int | None]]) -> None:
        self.world = World(Settings(max_placements=5))
        self.define(quotas_)
        for node, gpus in GPUS.items():
            self.world.connect(node, offer(node, cpu=32, gpus=gpus))

    @rule(quotas_=QUOTAS)
    def define(self, quotas_: list[tuple[int, int | None, int | None]]) -> None:
        self.world.apply(specs(quotas_))
        self.over = self._over()

    @rule(
        group=st.sampled_from(GROUPS),
        user=st.sampled_from(["ada", "bob"]),
        pool=st.sampled_from(["east", "west"]),
        tasks=st.integers(1, 6),
        gpus=st.sampled_from([500, 1000, 1000, 2000]),
        rerunnable=st.booleans(),
        queue=st.sampled_from(["normal", "urgent"]),
        more=st.none() | st.sampled_from([("east", 1000), ("west", 500)]),
    )
    def submit(
        self,
        group: str,
        user: str,
        pool: str,
        tasks: int,
        gpus: int,
        rerunnable: bool,
        queue: str,
        more: tuple[str, int] | None,
    ) -> None:
        """Perhaps with a part more, of this pool, and of few tasks: nothing but quotas keeps it back for good."""
        request = spec(gpu_milli=gpus).request.model_copy(update={"pools": {"gpu": pool}})
        array = Array(first=1, last=tasks)
        job = spec(user=user, group=group, array=array, rerunnable=rerunnable, queue=queue)
        if more is None:
            self.world.submit(job.model_copy(update={"request": request}))
            return
        other = spec(gpu_milli=more[1]).request.model_copy(update={"pools": {"gpu": more[0]}})
        parts = [
            Part(name="one", tasks=min(tasks, 1 if gpus > 1000 else 2), request=request),
            Part(name="other", request=other),
        ]
        self.world.submit(job.model_copy(update={"array": None, "gang": Gang(), "parts": parts}))

    @rule(pick=st.randoms(use_true_random=False), wish=st.sampled_from([CancelRequested, RequeueRequested]))
    def wish(self, pick: Any, wish: Callable[[int], Any]) -> None:
        if self.world.state.jobs:
            self.world.feed(wish(pick.choice(sorted(self.world.state.jobs))))

    @rule(name=st.sampled_from(sorted(NODES)), drained=st.booleans())
    def drain(self, name: str, drained: bool) -> None:
        self.world.feed(DrainRequested(name) if drained else ResumeRequested(name))

    @rule()
    def change_leader(self) -> None:
        self.world.change_leader()
        for name in NODES:
            self.world.connect(name)

    @invariant()
    def nobody_borrows_beyond_the_limits(self) -> None:
        if not hasattr(self, "over"):
            return
        over, self.over = self.over, self._over()
        for what, amount in self.over.items():
            assert amount <= over.get(what, 0), f"{what}: {amount} beyond the limit, and it was {over.get(what, 0)}"

    @invariant()
    def the_sums_are_what_is_held(self) -> None:
        if hasattr(self, "over"):
            self.world.check()
            assert audit(KEYS, self.world.store, self.world.specs).faults == []

    def _held(self) -> Counter[tuple[str, str]]:
        """GPUs by pool and group, in thousandths, by the shares of what is committed or about to be."""
        held: Counter[tuple[str, str]] = Counter()
        for key in self.world.state.runs:
            group = self.world.state.jobs[key.job].spec.group
            for share in self.world.state.book.shares(key.owner):
                if share.kind == "gpu":
                    held[NODES[share.provider], group] += share.amount
        return held

    def _over(self) -> Counter[tuple[str, ...]]:
        """How much is held beyond each law."""
        held, pools = self._held(), self.world.specs.pools
        over: Counter[tuple[str, ...]] = Counter()
        for group in GROUPS:
            ours = {name: found.quota.get(group, {}).get("gpu") for name, found in pools.items()}
            borrowed = sum(max(0, held[name, group] - (own.nominal if own else 0)) for name, own in ours.items())
            given = [own.borrow for own in ours.values() if own is not None]
            if None not in given:
                over["borrowed", group] = max(0, borrowed - sum(limit for limit in given if limit is not None))
        for node, pool in NODES.items():
            needed = 0
            for group in GROUPS:
                own = pools[pool].quota.get(group, {}).get("gpu", Quota(0, 0, 0))
                lent = own.nominal if own.lend is None else own.lend
                needed += max(held[pool, group], own.nominal - lent)
            over["pool", pool] = max(0, needed - GPUS[node] * 1000)
        for user, most in MOST_TASKS.items():
            for queue in ("normal", "urgent"):
                jobs = self.world.state.jobs
                tasks = sum(
                    1 for k in self.world.state.runs if (jobs[k.job].spec.user, jobs[k.job].queue) == (user, queue)
                )
                over["tasks", user, queue] = max(0, tasks - most)
        return +over

    def teardown(self) -> None:
        """What may ever start has ended, and then nobody holds anything."""
        if not hasattr(self, "over"):
            return
        w = self.world
        for name in NODES:
            w.feed(ResumeRequested(name))
        w.apply(specs([(3, None, None)] * 4))
        for _ in range(60):
            w.settle()
            for attempt in w.running():
                w.finish(attempt)
            for name in NODES:
                w.report(name)
            w.settle()
            w.advance(40)
        assert not [job for job in w.state.jobs.values() if job.unfinished and job.spec.group != "c"]
        assert not w.state.runs and not w.state.claims
        assert list(w.state.usage.faults([])) == []


FEW = settings(max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))

TestCluster = Cluster.TestCase
TestCluster.settings = FEW


def _unlimited(*_: object) -> int:
    return quotas.UNLIMITED


def _lends_all(state: Any, spec: Any, kind: str, group: str) -> int:
    return 0


def _one_more(state: Any, job: Any) -> int:
    found = [limit.left(state) + 1 for limit in limits.applying(state, job.spec, job.queue)]
    return min(found, default=job.ready)


def _counts_nothing(self: Any, job: Any, key: Any, shares: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("module", "name", "fault"),
    [
        (quotas, "_borrow", _unlimited),
        (quotas, "kept", _lends_all),
        (limits, "allowed", _one_more),
        (Usage, "remove", _counts_nothing),
    ],
)
def test_a_scheduler_that_breaks_the_law_is_found(
    module: object, name: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the test: planted, each of these is found within a few examples."""
    monkeypatch.setattr(module, name, fault)
    few = settings(FEW, derandomize=True, max_examples=200, phases=(Phase.generate,), database=None)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Cluster, settings=few)
