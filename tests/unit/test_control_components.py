"""Jobs that are compute groups: found by their component, with a time of their own to end in and to wait."""

from __future__ import annotations

import json
from signal import SIGKILL, SIGTERM

import pytest
from control_world import GIB, World, offer, spec
from hypothesis import given, settings
from hypothesis import strategies as st
from test_control_jobs import states, world
from test_control_reservations import reserve, submit, told

from lavalite.api.models import Submit
from lavalite.base.errors import InputError
from lavalite.control import views
from lavalite.control.admission import admit
from lavalite.control.events import CancelRequested, ReservationDrained
from lavalite.control.explain import explain
from lavalite.control.reservations import Asked, choose_nodes
from lavalite.mbatchd.changes import Changes, Told
from lavalite.model.affinity import Affinity
from lavalite.model.reservation import Reservation
from lavalite.model.selector import Selector
from lavalite.placement.reasons import Reason, Refusal

PENDING, RUNNING, CANCELLED = "P", "R", "X"


def of(w: World, component: str) -> list[int]:
    return sorted(w.state.components.get(component, {}))


# --- found by component --------------------------------------------------------------------------------------------


def test_those_that_have_not_ended_are_known_by_component_also_to_the_next_leader() -> None:
    w = world(offer("n1"))
    one, two = w.submit(spec(component="decode")), w.submit(spec(component="decode"))
    other, none = w.submit(spec(component="prefill")), w.submit(spec())
    told(w)
    assert (of(w, "decode"), of(w, "prefill")) == ([one, two], [other])
    w.feed(CancelRequested(one))
    told(w)
    assert states(w, one) == CANCELLED and of(w, "decode") == [two]
    w.change_leader()
    assert (of(w, "decode"), of(w, "prefill")) == ([two], [other]) and none in w.state.jobs
    w.connect("n1")
    w.feed(CancelRequested(other))
    told(w)
    assert "prefill" not in w.state.components


@settings(deadline=None)
@given(st.lists(st.sampled_from(["", "a", "b"]), min_size=1, max_size=6), st.sets(st.integers(0, 5)))
def test_the_index_is_what_a_look_at_all_jobs_would_find(components: list[str], cancelled: set[int]) -> None:
    w = world(offer("n1", cpu=3))
    jobs = [w.submit(spec(component=component)) for component in components]
    told(w)
    for at in cancelled & set(range(len(jobs))):
        w.feed(CancelRequested(jobs[at]))
    told(w)
    for _ in range(2):
        for component in ("a", "b"):
            found = [j.id for j in w.state.jobs.values() if j.unfinished and j.spec.component == component]
            assert of(w, component) == found
        w.change_leader()


def test_a_job_shows_its_component_its_gpus_and_that_it_is_to_end() -> None:
    w = world(offer("n1", gpus=2))
    job = w.submit(spec(component="decode", grace_seconds=30, gpu_milli=1000))
    told(w)
    view = views.job(w.state, w.state.jobs[job])
    assert (view["component"], view["gpus"], view["grace_seconds"]) == ("decode", ["n1-gpu0"], 30)
    assert (view["told_to_end"], view["attempts"], view["nodes"]) == (False, 0, ["n1"])
    w.agents["n1"].connected = False  # it hears nothing, and so does not end
    w.feed(CancelRequested(job))
    assert views.job(w.state, w.state.jobs[job])["told_to_end"]


def test_a_compute_group_may_ask_for_no_cpu_and_no_other_job_may() -> None:
    asked = {"command": ["true"], "request": {"cpu_milli": 0, "gpu_milli": 1000}}
    with pytest.raises(ValueError, match="nothing to ask for"):
        Submit.model_validate({"spec": asked})
    group = Submit.model_validate({"spec": {**asked, "component": "decode"}}).spec
    w = world(offer("n1", cpu=1, gpus=1))
    full, job = w.submit(spec()), w.submit(group.model_copy(update={"user": "ada"}))
    told(w)
    assert states(w, full) == states(w, job) == RUNNING


# --- time to end, and to wait --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "told_by", "given"), [(None, SIGTERM, 10.0), (0, SIGKILL, 0.0), (90, SIGTERM, 90.0)])
def test_who_is_cancelled_has_its_own_grace(own: int | None, told_by: int, given: float) -> None:
    w = world(offer("n1"))
    job = w.submit(spec(grace_seconds=own))
    told(w)
    w.feed(CancelRequested(job))
    w.settle()
    assert [(stop.signal, stop.grace_seconds) for stop in w.stops] == [(told_by, given)]


def test_what_waits_too_long_is_given_up_and_what_was_placed_is_not() -> None:
    w = world(offer("n1", cpu=1))
    placed = w.submit(spec(start_within_seconds=5))
    waits, patient = w.submit(spec(start_within_seconds=5)), w.submit(spec(start_within_seconds=50))
    told(w)
    w.advance(4)
    assert states(w, waits) == PENDING
    w.change_leader()
    w.connect("n1")
    w.advance(2)
    told(w)
    assert (states(w, placed), states(w, waits), states(w, patient)) == (RUNNING, CANCELLED, PENDING)
    assert views.task(w.state, w.state.jobs[waits], 0)["reason"] == "nothing of it was placed within 5 s"


def test_what_was_tried_before_is_not_given_up() -> None:
    w = world(offer("n1"))
    job = w.submit(spec(start_within_seconds=5, retries=3))
    told(w)
    for attempt in w.running():
        w.finish(attempt, 1)
    told(w)
    w.disconnect("n1")
    w.advance(30)
    told(w)
    assert states(w, job) == PENDING


def test_only_what_waits_is_cancelled_where_that_is_asked() -> None:
    w = world(offer("n1", cpu=1))
    runs, waits = w.submit(spec()), w.submit(spec())
    told(w)
    for job in (runs, waits):
        w.feed(CancelRequested(job, waiting=True))
    told(w)
    assert (states(w, runs), states(w, waits)) == (RUNNING, CANCELLED)
    w.feed(CancelRequested(runs))
    told(w)
    assert states(w, runs) == CANCELLED


def test_a_cancel_of_what_is_being_committed_spares_it_where_only_what_waits_is_to_end() -> None:
    w = world(offer("n1"))
    job = w.submit(spec())  # its commitment is not written yet
    w.feed(CancelRequested(job, waiting=True))
    told(w)
    assert states(w, job) == RUNNING


def test_it_is_told_whether_a_start_is_only_a_matter_of_moments() -> None:
    w = world(offer("n1", cpu=1))
    job = w.submit(spec())
    assert explain(w.state, w.state.jobs[job], w.now).soon  # its commitment is being written
    told(w)
    waits = w.submit(spec())
    told(w)
    assert not explain(w.state, w.state.jobs[waits], w.now).soon
    w.change_leader()
    assert explain(w.state, w.state.jobs[waits], w.now).soon  # its node has yet to find the new leader
    w.connect("n1")
    told(w)
    assert not explain(w.state, w.state.jobs[waits], w.now).soon


# --- where ---------------------------------------------------------------------------------------------------------


def test_nodes_are_named_or_left_out() -> None:
    w = world(offer("n1"), offer("n2"), offer("n3"))
    on = w.submit(spec(affinity=[Affinity(nodes=["n2"])]))
    some = w.submit(spec(affinity=[Affinity(nodes=["n[1:3]"]), Affinity(nodes=["n1", "n2"], anti=True)]))
    told(w)
    nodes = [views.task(w.state, w.state.jobs[job], 0)["node"] for job in (on, some)]
    assert nodes == ["n2", "n3"]
    with pytest.raises(InputError, match="can never be had"):
        admit(w.state, spec(affinity=[Affinity(nodes=["n9"])]), w.now)
    with pytest.raises(ValueError, match="just one of them"):
        Affinity(nodes=["n1"], name="db")
    assert Affinity(nodes=["n1"]).text() == "on nodes n1"


# --- reservations that are groups ----------------------------------------------------------------------------------


def test_a_reservation_is_on_nodes_that_are_selected_or_is_not_made() -> None:
    w = world(offer("n1", rack="r1"), offer("n2", rack="r2"), offer("n3", rack="r2"))

    def chosen(selector: object, count: int = 1) -> list[str] | Refusal:
        asked = Asked({"cpu": 1000}, count, "", w.now, w.now + 10, (), Selector.parse(selector))
        return choose_nodes(w.state, asked, w.now)

    assert chosen("n2") == ["n2"]
    assert chosen({"rack": "r2"}, 2) == ["n2", "n3"]
    refused = chosen(["n9"])
    assert isinstance(refused, Refusal) and refused.turned_away == {Reason.NOT_IN_POOL: 3}


def test_nothing_new_starts_in_one_that_is_drained_and_what_it_keeps_stays_kept() -> None:
    w = world(offer("n1", cpu=1))
    reserve(w)
    w.feed(ReservationDrained("r"))
    inside, outside = submit(w, reservation="r"), submit(w)
    assert states(w, inside) == states(w, outside) == PENDING
    assert explain(w.state, w.state.jobs[inside], w.now).sentence == "Reservation r is drained."
    w.change_leader()
    w.connect("n1")
    told(w)
    assert w.state.reservations["r"].drained and states(w, inside) == PENDING
    w.feed(ReservationDrained("r", undo=True))
    told(w)
    assert (states(w, inside), states(w, outside)) == (RUNNING, PENDING)


def test_one_that_is_a_components_lets_in_no_other() -> None:
    w = world(offer("n1"))
    reserve(w, group=True, component="decode")
    admit(w.state, spec(reservation="r", component="decode"), w.now)
    with pytest.raises(InputError, match="is kept for component decode"):
        admit(w.state, spec(reservation="r", component="prefill"), w.now)


def test_one_that_is_no_group_is_written_as_before() -> None:
    plain = Reservation(name="r", owner="ada", amounts={"cpu": 1}, nodes=["n1"], start=0.0, end=1.0)
    assert not {"group", "component", "drained"} & json.loads(plain.model_dump_json()).keys()
    group = plain.model_copy(update={"group": True, "drained": True})
    assert Reservation.model_validate_json(group.model_dump_json()) == group


# --- what nodes have -----------------------------------------------------------------------------------------------


def test_resources_are_told_device_by_device_with_what_is_kept() -> None:
    w = world(offer("n1", gpus=2, fpgas=1), offer("n2"))
    w.submit(spec(component="decode", gpu_milli=500, special={"fpga": 1}))
    told(w)
    reserve(w, amounts={"cpu": 1000, "gpu": 1000}, seconds=60)
    one, two = views.resources(w.state, w.now)
    assert (one["node"], one["state"], two["node"]) == ("n1", "ready", "n2")
    assert one["resources"]["gpu"] == {"capacity": 2000, "committed": 500, "free": 1500, "kept": 1000}
    assert one["resources"]["cpu"]["kept"] == 1000 and one["resources"]["memory"]["kept"] == 0
    devices = {(d["kind"], d["id"]): (d["free_milli"], d["model"], d["memory_bytes"]) for d in one["devices"]}
    assert devices == {
        ("gpu", "n1-gpu0"): (500, "A100", 80 * GIB),
        ("gpu", "n1-gpu1"): (1000, "A100", 80 * GIB),
        ("fpga", "/dev/n1-fpga0"): (0, "U250", 0),
    }
    assert two["devices"] == []
    assert [view["node"] for view in views.resources(w.state, w.now, "n1")] == ["n2"]


# --- what is told --------------------------------------------------------------------------------------------------


class Clock:
    """As SteadyTime, of a world."""

    def __init__(self, w: World) -> None:
        self._world = w

    def now(self) -> float:
        return self._world.now


async def test_changes_of_groups_and_reservations_are_told_by_themselves() -> None:
    w = world(offer("n1"))
    changes = Changes(w.state, Clock(w))  # type: ignore[arg-type]
    told_of: list[Told] = []

    def feed(event: object) -> None:
        w.feed(event)  # type: ignore[arg-type]
        changes.heard(event)  # type: ignore[arg-type]

    job, plain = w.submit(spec(component="decode")), w.submit(spec())
    told(w)
    feed(CancelRequested(job))
    feed(CancelRequested(plain))
    reserve(w)
    feed(ReservationDrained("r"))
    page = await changes.recent("", lambda told: told_of.append(told) or True, 100, 0)
    assert [(c.kind, c.name) for c in page.items if c.kind == "group"] == [("group", str(job))]
    assert [(c.name, c.state) for c in page.items if c.kind == "reservation"] == [("r", "drained")]
