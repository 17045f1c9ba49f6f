"""What becomes of groups: taken, given back, drained, reserved, run out; and who waits for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from groups_world import Planner, gpu, held, offer

from lavalite.groups.engine import life, waiting
from lavalite.groups.engine.changes import Refused
from lavalite.groups.errors import GroupStateError, ReservationError, UnknownGroupError
from lavalite.groups.records import GroupRecord
from lavalite.groups.requirements import read_ask

ONE = {"gpu": 1, "cpu": 1}
FOUR = {"gpu": 4, "cpu": 1}


@pytest.fixture
def planner() -> Planner:
    planner = Planner()
    planner.put_nodes(offer("n1", 4))
    return planner


# --- free groups ----------------------------------------------------------------------------------------------------


def test_a_free_group_is_taken_by_who_asks_for_just_that(planner: Planner) -> None:
    more = planner.create({"gpu": 1, "cpu": 8})
    just = planner.create(ONE)
    assert planner.allocate("decode", ONE).id == just.id
    assert planner.allocate("decode", ONE).id == more.id, "it has enough, and no GPU more"
    assert planner.allocate("decode", ONE).id not in (more.id, just.id)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ({"gpu": 2, "cpu": 1}, True),
        ({"gpu": 2, "cpu": 2}, True),
        ({"gpu_milli": 2000, "cpu_milli": 500}, True),
        ({"gpu": {"count": 2, "model": "H100"}}, True),
        ({"gpu": {"count": 2, "model": "A100"}}, False),
        ({"gpu": {"count": 2, "topology": "nvlink"}}, False),
        ({"gpu": 2, "cpu": 3}, False),
        ({"gpu": 2, "memory": "1GiB"}, False),
        ({"gpu": 1, "cpu": 1}, False),
        ({"cpu": 1}, False),
    ],
)
def test_a_group_has_enough_and_is_not_more_than_needed(asked: dict[str, Any], taken: bool) -> None:
    planner = Planner()
    planner.put_nodes(offer("n1", 8))
    group = planner.create({"gpu": 2, "cpu": 2})
    found = planner.try_allocate("decode", asked)
    assert (isinstance(found, GroupRecord) and found.id == group.id) == taken


def test_a_free_group_is_where_it_may_be(planner: Planner) -> None:
    planner.put_nodes(offer("n1", 4, labels={"rack": "r1"}), offer("n2", 4, labels={"rack": "r2"}))
    first, second = planner.create(ONE, node="n1"), planner.create(ONE, node="n2")
    assert planner.allocate("decode", ONE, nodes={"rack": "r2"}).id == second.id
    assert planner.allocate("prefill", ONE, anti_affinity=["decode"]).id == first.id
    planner.deallocate(*planner.picture.groups_of("decode"), *planner.picture.groups_of("prefill"))
    assert planner.allocate("decode", ONE, node="n2").id == second.id
    planner.put_nodes(offer("n1", 4, closed="It is cordoned."))
    assert planner.allocate("decode", ONE).id not in (first.id, second.id)


def test_a_part_is_taken_by_who_asks_for_such_a_part() -> None:
    planner = Planner()
    devices = [gpu("n1", 0, mig="on", mig_profiles="1g:100,2g:300"), gpu("n1", 1, mps="yes")]
    planner.put_nodes(offer("n1", devices))
    made = planner.create({"gpu": 0.25, "isolation": "auto"})
    assert made.isolation == "mig" and made.shares[0].amount == 300
    bare = planner.create({"gpu": 0.25, "isolation": "none"})
    assert planner.allocate("small", {"gpu": 0.25, "isolation": "none"}).id == bare.id
    assert planner.allocate("small", {"gpu": 0.25, "isolation": "mig"}).id == made.id


def test_deallocating_what_was_created_leaves_it_and_what_was_not_does_not(planner: Planner) -> None:
    created = planner.create(ONE)
    taken = planner.allocate("decode", ONE, group=created.id)
    assert (taken.state, taken.component, taken.created) == ("allocated", "decode", True)
    made = planner.allocate("decode", ONE)
    planner.deallocate(taken, made)
    assert planner.state(created) == "free" and planner.state(made) == "gone"
    assert planner.picture.groups[created.id] == created, "as it was before"
    assert planner.picture.book.free("n1", "gpu") == 3000


def test_a_group_by_its_name(planner: Planner) -> None:
    group = planner.create(ONE)
    with pytest.raises(UnknownGroupError):
        planner.try_allocate("decode", ONE, group="no-such")
    refused = planner.try_allocate("decode", {"gpu": 2}, group=group.id)
    assert isinstance(refused, Refused) and not refused.ever and group.id in refused.sentence
    assert planner.allocate("decode", {"cpu": 0.5}, group=group.id).id == group.id, "more than needed, but named"
    with pytest.raises(GroupStateError, match="allocated of decode"):
        planner.try_allocate("prefill", ONE, group=group.id)


# --- the table of states --------------------------------------------------------------------------------------------


def in_state(planner: Planner, state: str) -> GroupRecord:
    if state == "free":
        return planner.create(ONE)
    if state == "reserved":
        return planner.reserve("decode", ONE)
    group = planner.create(ONE) if "created" in state else None
    found = planner.allocate("decode", ONE, **({"group": group.id} if group else {}))
    if "draining" in state:
        planner.carry_out(lambda p: life.drain(p, [found.id]))
    return planner.picture.groups[found.id]


Verb = Callable[[Any, str], Any]
VERBS: dict[str, Verb] = {
    "deallocate": lambda p, i: life.deallocate(p, "decode", [i]),
    "delete": lambda p, i: life.delete(p, [i]),
    "drain": lambda p, i: life.drain(p, [i]),
    "resume": lambda p, i: life.resume(p, [i]),
    "release": life.release_reservation,
}
STATES = {
    # in this state:       deallocate  delete  drain       resume       release
    "free": ("no", "gone", "draining", "no", "no"),
    "reserved": ("no", "no", "draining", "no", "gone"),
    "allocated": ("gone", "no", "draining", "no", "no"),
    "allocated created": ("free", "no", "draining", "no", "no"),
    "draining": ("gone", "no", "no", "allocated", "no"),
    "draining created": ("draining", "no", "no", "allocated", "no"),
}


@pytest.mark.parametrize(
    ("state", "verb", "after"),
    [(state, verb, after) for state, row in STATES.items() for verb, after in zip(VERBS, row, strict=True)],
)
def test_what_may_be_done_in_each_state(planner: Planner, state: str, verb: str, after: str) -> None:
    group = in_state(planner, state)
    if after == "no":
        with pytest.raises(GroupStateError, match=group.id):
            VERBS[verb](planner.picture, group.id)
        assert planner.picture.groups[group.id] == group
        return
    planner.carry_out(lambda p: VERBS[verb](p, group.id))
    assert planner.state(group) == after
    planner.picture.book.check()


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_not_there(planner: Planner, verb: str) -> None:
    with pytest.raises(UnknownGroupError):
        VERBS[verb](planner.picture, "no-such")


def test_a_created_group_that_drained_is_deleted_or_resumed(planner: Planner) -> None:
    group = in_state(planner, "draining created")
    planner.carry_out(lambda p: life.deallocate(p, "decode", [group.id]))
    assert isinstance(planner.try_allocate("decode", FOUR), Refused)
    planner.carry_out(lambda p: life.resume(p, [group.id]))
    assert planner.state(group) == "free"
    planner.carry_out(lambda p: life.drain(p, [group.id]))
    planner.carry_out(lambda p: life.delete(p, [group.id]))
    assert len(held(planner.allocate("decode", FOUR))) == 4


def test_several_are_changed_all_or_none(planner: Planner) -> None:
    mine, theirs = planner.allocate("decode", ONE), planner.allocate("prefill", ONE)
    with pytest.raises(GroupStateError, match="of prefill, not of decode"):
        planner.carry_out(lambda p: life.deallocate(p, "decode", [mine.id, theirs.id]))
    with pytest.raises(UnknownGroupError):
        planner.carry_out(lambda p: life.drain(p, [mine.id, "no-such"]))
    assert planner.state(mine) == planner.state(theirs) == "allocated"


# --- reservations ---------------------------------------------------------------------------------------------------


def test_a_reservation_is_for_its_component_which_gets_it_by_asking_for_the_same(planner: Planner) -> None:
    kept = planner.reserve("decode", FOUR)
    refused = planner.try_allocate("prefill", ONE)
    assert isinstance(refused, Refused) and refused.ever
    with pytest.raises(ReservationError, match="reserved for decode"):
        planner.try_allocate("prefill", FOUR, group=kept.id)
    taken = planner.allocate("decode", FOUR)
    assert (taken.id, taken.state, taken.expires_at) == (kept.id, "allocated", None)
    planner.deallocate(taken)
    assert planner.state(kept) == "gone"


def test_without_a_name_it_is_for_who_names_it(planner: Planner) -> None:
    kept = planner.reserve("", FOUR)
    assert isinstance(planner.try_allocate("decode", FOUR), Refused)
    assert planner.allocate("decode", FOUR, group=kept.id).component == "decode"


def test_one_more_is_reserved_and_not_the_same_again(planner: Planner) -> None:
    first, second = planner.reserve("decode", ONE), planner.reserve("decode", ONE)
    assert set(held(first)).isdisjoint(held(second))


def test_a_reservation_runs_out(planner: Planner) -> None:
    created = planner.create(ONE)
    kept = planner.reserve("decode", ONE, 10)
    new = planner.reserve("decode", ONE, 20)
    assert kept.id == created.id and planner.picture.next_due() == planner.now + 10
    planner.now += 9.9
    assert not planner.expire()
    planner.now += 0.1
    with pytest.raises(ReservationError, match="run out"):
        planner.try_allocate("decode", ONE, group=kept.id)
    assert planner.expire()
    assert (planner.state(created), planner.state(new)) == ("free", "reserved")
    planner.now += 10
    planner.expire()
    assert planner.state(new) == "gone"
    assert not planner.picture.due(planner.now) and not planner.expire()


# --- who waits ------------------------------------------------------------------------------------------------------


def wait(planner: Planner, name: str, requirements: dict[str, Any], priority: int = 0, **constraints: Any) -> None:
    asked = {**requirements, "constraints": {"priority": priority, "wait": 600, **constraints}}
    ask = read_ask(name, asked)
    planner.carry_out(lambda p: waiting.wait(p, ask, asked, planner.now, name, planner.now + 30))


def test_nobody_overtakes_who_waits_for_that_room(planner: Planner) -> None:
    first = planner.allocate("old", {"gpu": 2})
    wait(planner, "large", {"gpu": 3})
    assert len(held(planner.allocate("decode", ONE))) == 1, "it could not have had it: 2 are free, and 3 are wanted"
    planner.deallocate(first)
    refused = planner.try_allocate("prefill", ONE)
    assert isinstance(refused, Refused) and refused.reasons == {"waiting_ahead": 1} and refused.ever
    planner.picture.book.check()
    assert list(planner.picture.groups_of("large")) == [], "it was seated in thought only"
    assert len(held(planner.try_allocate("large", {"gpu": 3}, waiter_id="large"))) == 3  # type: ignore[arg-type]
    assert not planner.picture.waiting


def test_room_beside_is_anybodys(planner: Planner) -> None:
    planner.put_nodes(offer("n2", 4))
    wait(planner, "large", FOUR)
    assert isinstance(planner.try_allocate("decode", FOUR), GroupRecord)
    assert isinstance(planner.try_allocate("prefill", ONE), Refused)


@pytest.mark.parametrize(("mine", "given"), [(-1, False), (0, False), (1, True)])
def test_a_higher_priority_goes_before_and_an_equal_one_waits_its_turn(
    planner: Planner, mine: int, given: bool
) -> None:
    wait(planner, "waits", FOUR)
    planner.now += 1
    assert isinstance(planner.try_allocate("decode", FOUR, priority=mine), GroupRecord) == given


def test_of_those_that_wait_the_highest_is_first_then_the_longest(planner: Planner) -> None:
    full = planner.allocate("old", FOUR)
    for name, priority in (("second", 0), ("third", 0), ("first", 5)):
        planner.now += 1
        wait(planner, name, FOUR, priority)
    planner.deallocate(full)
    for name in ("first", "second", "third"):
        for other in {"first", "second", "third"} & planner.picture.waiting.keys() - {name}:
            priority = planner.picture.waiting[other].record.priority
            assert isinstance(planner.try_allocate(other, FOUR, waiter_id=other, priority=priority), Refused)
        priority = planner.picture.waiting[name].record.priority
        planner.deallocate(planner.try_allocate(name, FOUR, waiter_id=name, priority=priority))  # type: ignore[arg-type]


def test_who_waits_and_is_not_heard_of_is_in_nobodys_way(planner: Planner) -> None:
    wait(planner, "dead", FOUR)
    planner.now += 30
    assert isinstance(planner.try_allocate("decode", ONE), GroupRecord)
    assert planner.expire() and not planner.picture.waiting


def test_a_wait_is_prolonged_and_given_up(planner: Planner) -> None:
    wait(planner, "large", FOUR)
    since = planner.picture.waiting["large"].record.asked_at
    planner.now += 20
    wait(planner, "large", FOUR)
    record = planner.picture.waiting["large"].record
    assert (record.asked_at, record.expires_at) == (since, planner.now + 30)
    planner.carry_out(lambda p: waiting.give_up(p, "large"))
    assert not planner.picture.waiting and not waiting.give_up(planner.picture, "large")
