"""Whatever is asked of several planners that share a ledger, in whatever order:

the books add up · committed and free are the capacity · no device is given out twice, nor to two isolations at once ·
nobody is beyond a quota by a decision · the picture that is kept up is the one that is read anew · what was asked
and not given changed nothing · once all is given back all is free
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import numpy as np
from groups_world import PROFILES, Planner, gpu, offer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lavalite.base.errors import ConflictError, InputError
from lavalite.groups.engine import decide, life, supply, waiting
from lavalite.groups.engine.changes import Changes, Refused
from lavalite.groups.engine.picture import Picture, devices_of
from lavalite.groups.errors import GroupStateError, ReservationError, UnknownGroupError
from lavalite.groups.requirements import STRATEGIES, read_ask
from lavalite.ledger.book import LedgerBroken

PLANNERS = 3
NOT_SO = (UnknownGroupError, GroupStateError, ReservationError, InputError, ConflictError)
QUOTAS = {"a": {"nominal": 3, "borrow": 2}, "b": {"nominal": 4, "lend": 1}}
ASKED = st.sampled_from(
    [
        {"gpu": 1},
        {"gpu": 1, "cpu": 2},
        {"gpu": 2, "cpu": 1, "memory": "8GiB"},
        {"gpu": {"count": 2, "topology": "nvlink"}},
        {"gpu": {"count": 3, "model": "H100"}},
        {"gpu": 0.25},
        {"gpu": 0.5, "isolation": "none"},
        {"gpu": 0.3, "isolation": "mps"},
        {"gpu": {"count": 2, "mig": "2g.20gb"}},
        {"cpu": 3},
        {"cpu": 20, "memory": "64GiB"},
    ]
)
WHERE = st.sampled_from(
    [
        {},
        {},
        {},
        {"pool": "shared"},
        {"pool": "shared", "team": "b"},
        {"node": "n1"},
        {"nodes": {"rack": "r2"}},
        {"affinity": ["a"]},
        {"anti_affinity": ["a"], "within": "rack"},
        {"affinity": ["b"], "within": "rack"},
    ]
)
NAMES = st.sampled_from(["a", "b", "c"])


def offers(name: str, gpus: int) -> Any:
    """n1 has plain GPUs on two islands, n2 such as serve by MPS, n3 one that makes MIG instances, n4 none."""
    devices = {
        "n1": [gpu("n1", at, nvlink=f"i{at // 2}", numa=at // 2) for at in range(4)],
        "n2": [gpu("n2", at, mps="yes") for at in range(3)],
        "n3": [gpu("n3", 0, mig="on", mig_profiles=PROFILES), gpu("n3", 1)],
        "n4": [],
    }[name]
    return offer(name, devices[:gpus], cpu=8, memory=64, labels={"rack": "r1" if name in ("n1", "n2") else "r2"})


class Groups(RuleBasedStateMachine):
    """Several planners; each is as current as it happens to be."""

    @initialize()
    def begin(self) -> None:
        first = Planner()
        self.world = first.ledger.world
        self.planners = [first, *(Planner(self.world) for _ in range(PLANNERS - 1))]
        for number, planner in enumerate(self.planners):
            planner.name = f"p{number}"
        first.put_nodes(*(offers(name, 4) for name in ("n1", "n2", "n3", "n4")))
        first.put_pool("shared", nodes="n[1:2]", kinds=["gpu"], cohort="site", quota=QUOTAS)
        first.put_pool("rest", nodes="*", kinds=["gpu"], default=True)
        self.full = True
        """Whether all nodes have what they had."""

    def _do(self, which: int, decision: Any) -> Changes | Refused | None:
        planner = self.planners[which]
        before = dict(self.world.records)
        try:
            answer = planner.carry_out(decision)
        except NOT_SO:
            answer = None
        if not isinstance(answer, Changes):
            assert self.world.records == before
        return answer

    @rule(
        which=st.integers(0, PLANNERS - 1), name=NAMES, asked=ASKED, where=WHERE, how=st.sampled_from([*STRATEGIES])
    )
    def allocate(self, which: int, name: str, asked: dict[str, Any], where: dict[str, Any], how: str) -> None:
        if how == "affinity":
            where = {**where, "affinity": ["a"]}
        planner = self.planners[which]
        resources = {**asked, "constraints": {**where, "strategy": how}}
        ask, group_id = read_ask(name, resources), planner._new_id()
        used = self._borrowed(planner)
        answer = self._do(which, lambda p: decide.allocate(p, ask, resources, planner.now, group_id))
        if isinstance(answer, Changes):
            self._has(planner, answer, ask)
            if used is not None and self.full:
                self._within_quotas(planner.picture)
        elif isinstance(answer, Refused):
            assert answer.sentence and answer.reasons

    @rule(which=st.integers(0, PLANNERS - 1), asked=ASKED, where=WHERE)
    def create(self, which: int, asked: dict[str, Any], where: dict[str, Any]) -> None:
        planner, resources = self.planners[which], {**asked, "constraints": where}
        ask, group_id = read_ask("", resources), planner._new_id()
        self._do(which, lambda p: decide.create(p, ask, resources, planner.now, group_id))

    @rule(which=st.integers(0, PLANNERS - 1), name=st.sampled_from(["", "a", "b"]), asked=ASKED, where=WHERE)
    def reserve(self, which: int, name: str, asked: dict[str, Any], where: dict[str, Any]) -> None:
        planner, resources = self.planners[which], {**asked, "constraints": where}
        ask, group_id = read_ask(name, resources), planner._new_id()
        self._do(which, lambda p: decide.reserve(p, ask, resources, planner.now, group_id, 5))

    @rule(which=st.integers(0, PLANNERS - 1), name=NAMES, pick=st.integers(0, 50))
    def take_by_name(self, which: int, name: str, pick: int) -> None:
        planner = self.planners[which]
        if group_id := self._some(pick):
            resources = {"cpu": 1, "constraints": {"group": group_id, "pool": ""}}
            ask = read_ask(name, resources)
            self._do(which, lambda p: decide.allocate(p, ask, resources, planner.now, "never"))

    @rule(
        which=st.integers(0, PLANNERS - 1),
        pick=st.integers(0, 50),
        verb=st.sampled_from(["deallocate", "deallocate", "delete", "drain", "resume", "release"]),
    )
    def change(self, which: int, pick: int, verb: str) -> None:
        group_id = self._some(pick)
        record = self.planners[which].picture.groups.get(group_id)
        component = record.component if record is not None else "a"
        decisions = {
            "deallocate": lambda p: life.deallocate(p, component, [group_id]),
            "delete": lambda p: life.delete(p, [group_id]),
            "drain": lambda p: life.drain(p, [group_id]),
            "resume": lambda p: life.resume(p, [group_id]),
            "release": lambda p: life.release_reservation(p, group_id),
        }
        self._do(which, decisions[verb])

    @rule(which=st.integers(0, PLANNERS - 1), name=NAMES, asked=ASKED, priority=st.integers(-1, 1))
    def wait(self, which: int, name: str, asked: dict[str, Any], priority: int) -> None:
        planner, waiter_id = self.planners[which], f"w-{name}"
        resources = {**asked, "constraints": {"priority": priority}}
        ask = read_ask(name, resources)
        self._do(which, lambda p: waiting.wait(p, ask, resources, planner.now, waiter_id, planner.now + 4))

    @rule(seconds=st.sampled_from([1, 3]))
    def time_passes(self, seconds: int) -> None:
        for planner in self.planners:
            planner.now += seconds

    @rule(which=st.integers(0, PLANNERS - 1))
    def expire(self, which: int) -> None:
        planner = self.planners[which]
        self._do(which, lambda p: life.expire(p, planner.now, 2))

    @rule(which=st.integers(0, PLANNERS - 1), name=st.sampled_from(["n1", "n2", "n3"]), gpus=st.integers(0, 4))
    def a_node_changes(self, which: int, name: str, gpus: int) -> None:
        self._do(which, lambda p: supply.put_nodes(p, [offers(name, gpus)]))
        self.full = False

    @rule(which=st.integers(0, PLANNERS - 1), name=st.sampled_from(["n2", "n3"]))
    def a_node_goes_and_comes(self, which: int, name: str) -> None:
        named = {"n1", "n2", "n3", "n4"} - {name}
        self._do(which, lambda p: supply.drop_nodes(p, named, 9))
        self._do(which, lambda p: supply.put_nodes(p, [offers(name, 4)]))

    @rule(which=st.integers(0, PLANNERS - 1))
    def read(self, which: int) -> None:
        self.planners[which].sync()

    # --- laws -----------------------------------------------------------------------------------------------------

    @invariant()
    def books_add_up(self) -> None:
        for planner in self.planners:
            picture = planner.picture
            picture.book.check()
            loads: Counter[tuple[str, str]] = Counter()
            for group in picture.groups.values():
                for share in group.shares:
                    for device in share.devices:
                        loads[(group.node, device)] += share.amount // len(share.devices)
            assert all(load <= 1000 for load in loads.values()), "a device is given out twice"
            for parts in picture.parts.values():
                assert len(set(parts.values())) == 1, "two isolations on one GPU"

    @invariant()
    def the_picture_kept_up_is_the_one_read_anew(self) -> None:
        anew = Planner(self.world)
        for planner in self.planners:
            if planner.ledger._commits == self.world.commits:
                assert seen(planner.picture) == seen(anew.picture)

    def teardown(self) -> None:
        if not hasattr(self, "planners"):
            return
        planner = self.planners[0]
        planner.sync()
        planner.put_nodes(*(offers(name, 4) for name in ("n1", "n2", "n3", "n4")))
        planner.carry_out(lambda p: life.remove(p, list(p.groups)))
        for name, node in planner.picture.nodes.items():
            capacity, free = planner.picture.book.amounts(name)
            assert capacity == free
            assert all(left == 1000 for left in planner.picture.book.device_free(name, "gpu").values())
            assert set(node.gpus) == set(planner.picture.book.device_free(name, "gpu"))
        assert not planner.picture.usage.used and not planner.picture.parts and not planner.picture.neighbours.nodes

    # --- the laws, written down a second time -----------------------------------------------------------------------

    def _borrowed(self, planner: Planner) -> Counter[str] | None:
        planner.sync()
        return used_of(planner.picture)

    def _within_quotas(self, picture: Picture) -> None:
        used = used_of(picture)
        most = {"a": 3 + 2, "b": 7}
        for team, amount in used.items():
            assert amount <= most.get(team, 0) * 1000, f"{team} has {amount} of pool shared"
        kept = {"a": 0, "b": 3}  # what b never lends
        total = sum(max(used[team], kept[team] * 1000) for team in ("a", "b"))
        assert total <= 7000, f"{dict(used)}: what b keeps is not there"

    def _has(self, planner: Planner, answer: Changes, ask: Any) -> None:
        """The group has what was asked for, where it may be."""
        group = next(g for g in answer.groups if g.component == ask.component)
        has: Counter[str] = Counter()
        for share in group.shares:
            has[share.kind] += share.amount
        for kind, amount in ask.request.amounts().items():
            if kind != "gpu" or not ask.request.gpu_mig:
                assert has[kind] >= amount, f"{kind}: {has[kind]} of {amount}"
        if ask.request.gpu_topology:
            near = {planner.picture.nodes[group.node].gpus[device].near.nvlink for device in devices_of(group)}
            assert len(near) == 1 and near != {""}
        labels = planner.picture.nodes[group.node].labels
        selector = ask.constraints.selector()
        assert selector is None or selector.matches(group.node, labels)
        assert not ask.constraints.node or group.node == ask.constraints.node
        if ask.constraints.pool:
            assert group.node in ("n1", "n2")

    def _some(self, pick: int) -> str:
        names = sorted(key.removeprefix("groups/") for key in self.world.records if key.startswith("groups/"))
        return names[pick % len(names)] if names else "none"


def used_of(picture: Picture) -> Counter[str]:
    """What teams hold of the pool that is divided, from the groups alone."""
    used: Counter[str] = Counter()
    for group in picture.groups.values():
        for share in group.shares:
            if share.pool == "shared":
                used[group.team] += share.amount
    return used


def seen(picture: Picture) -> dict[str, Any]:
    """All of a picture that decisions could go by, in an order of its own."""
    columns = picture.columns
    rows = {
        name: (
            columns.free_on(row).tolist(),
            columns.states[row],
            [(d.id, d.model, d.free, d.mig) for d in columns.devices(row)],
            sorted(pool for pool in picture.pools if columns.pool(pool)[row]),
        )
        for name in picture.nodes
        if (row := columns.row(name)) is not None
    }
    assert not columns.room_at(None).size or np.isfinite(columns.room_at(None)).all()
    accounts = {
        (provider, kind): (a.capacity, a.committed, sorted(a.loads.items()))
        for provider, kind, a in picture.book.accounts()
    }
    return {
        "groups": picture.groups,
        "nodes": {name: node.offer for name, node in picture.nodes.items()},
        "pools": {name: pool.record for name, pool in picture.pools.items()},
        "waiting": {name: waiter.record for name, waiter in picture.waiting.items()},
        "rows": rows,
        "accounts": accounts,
        "usage": picture.usage.used,
        "parts": picture.parts,
        "neighbours": picture.neighbours.nodes,
        "shelf": {name: picture.shelf.sort_of(name) for name in picture.shelf.ids()},
        "holders": picture.holders(),
        "due": sorted(picture.due(1e12)),
    }


TestGroups = Groups.TestCase
TestGroups.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_the_law_finds_a_device_that_is_given_out_twice() -> None:
    """Planted: two planners write without looking whether the other has."""
    first = Planner()
    first.put_nodes(offer("n1", 1))
    second = Planner(first.ledger.world)
    group = first.allocate("a", {"gpu": 1})
    changes = Changes()
    changes.put(group.model_copy(update={"id": "again"}))
    with contextlib.suppress(LedgerBroken):
        second.sync()
        second.picture.take(changes)
        second.picture.book.check()
        raise AssertionError("nobody noticed")
