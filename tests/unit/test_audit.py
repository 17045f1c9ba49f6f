"""What `audit` finds in stored records, and that it finds nothing where nothing is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from control_world import KEYS, World, offer, spec

from lavalite.control.audit import Audit, audit
from lavalite.control.events import Specs
from lavalite.model.job import Array
from lavalite.model.specs import HostSpec, PoolSpec, QueueSpec

Records = dict[str, bytes]
SPECS = Specs(
    pools={"licences": PoolSpec("licences", floating={"matlab": 2})},
    queues={"normal": QueueSpec("normal", 30, default=True)},
    hosts={"trainer": HostSpec("trainer", {"cpu": 2000, "gpu": 1000})},
)


@pytest.fixture
def records() -> Records:
    """Two nodes, a composed host, an array of three of which one has ended, and one job that waits."""
    world = World()
    world.connect("n1", offer("n1", cpu=4, gpus=2))
    world.connect("n2", offer("n2", cpu=3))
    world.apply(SPECS)
    world.settle()
    world.submit(spec(array=Array(first=1, last=3), floating={"matlab": 0}))
    world.submit(spec(gpu_milli=1000))
    world.submit(spec(hold=True))
    world.settle()
    world.finish(min(world.running()))
    world.settle()
    return world.store


def look(records: Records) -> Audit:
    return audit(KEYS, records, SPECS)


def edit(records: Records, key: str, change: Callable[[Any], None]) -> None:
    value = json.loads(records[key])
    change(value)
    records[key] = json.dumps(value).encode()


def test_what_a_scheduler_wrote_keeps_the_law(records: Records) -> None:
    found = look(records)
    assert (found.faults, found.notes) == ([], [])
    # A host, two tasks of the array and the one on a GPU.
    assert (found.nodes, found.hosts, found.jobs, found.unfinished_tasks, found.commitments) == (2, 1, 3, 4, 4)
    assert found.generation == 0


def test_nothing_at_all_keeps_the_law() -> None:
    assert look({}).faults == []


def lose(key: str) -> Callable[[Records], None]:
    return lambda records: records.__delitem__(key)


def change(key: str, **values: Any) -> Callable[[Records], None]:
    return lambda records: edit(records, key, lambda value: value.update(values))


def chunk(job: int, states: str) -> Callable[[Records], None]:
    return lambda records: records.update({KEYS.task_chunk(job): json.dumps({"states": states}).encode()})


JOB, HOST, DOUBLE = KEYS.commitment("job/2/0"), KEYS.commitment("host/trainer"), KEYS.commitment("job/1/3")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lose(KEYS.job(1)), "commitment job/1/2 is of a task that is not there"),
        (lose(HOST), "host trainer is composed, and its commitment does not hold exactly its parts"),
        (change(HOST, shares=[]), "host trainer is composed, and its commitment does not hold exactly its parts"),
        (change(JOB, owner="job/3/0"), "commitment job/2/0 says that it is of job/3/0"),
        (change(JOB, epoch=[4, 1]), "commitment job/2/0 is of generation 4, and this is generation 0"),
        (change(JOB, job=77), "commitment job/2/0 is of a task that is not there"),
        (chunk(3, "R"), "job 3 has 1 tasks that hold something, and 0 commitments"),
        (chunk(3, "?"), "job 3 has tasks in states that are not known"),
        (chunk(3, "PP"), "the records do not fit together"),
        (lambda records: records.update({KEYS.job_counter: b"2"}), "job 3 is there, and the counter says that 2"),
        (lambda records: records.update({KEYS.generation: b"new"}), "the record generation is no number"),
        (lambda records: records.update({KEYS.job(2): b"{"}), "stored record jobs/000000000002 cannot be read"),
        (
            lambda records: records.update({DOUBLE: records[JOB]}),
            "job/2/0 holds a commitment already",
        ),
    ],
)
def test_what_breaks_the_law_is_named(records: Records, harm: Callable[[Records], None], said: str) -> None:
    harm(records)
    assert any(said in fault for fault in look(records).faults), look(records)


def test_a_device_that_two_hold_is_named(records: Records) -> None:
    taken = json.loads(records[HOST])["shares"]
    device = next(share for share in taken if share["devices"])
    edit(records, JOB, lambda value: value.update(shares=[device]))
    assert any("is held twice" in fault for fault in look(records).faults), look(records)


def test_what_a_crash_leaves_is_told_and_is_no_fault(records: Records) -> None:
    """The end of a task is written before its commitment goes; a job before its chunks."""
    edit(records, KEYS.task_chunk(1), lambda value: value.update(states="DDP"))
    del records[KEYS.job(3)]
    records[KEYS.task_chunk(3)] = records[KEYS.task_chunk(1)]
    found = look(records)
    assert found.faults == []
    assert len(found.notes) == 2 and found.notes[0].startswith("1 commitments of what has ended")


def test_a_node_that_came_back_smaller_is_told_and_is_no_fault(records: Records) -> None:
    edit(records, KEYS.resources("n1"), lambda value: value["offer"]["resources"][0].update(amount=1000))
    found = look(records)
    assert (found.faults, found.notes) == ([], ["n1 offers less cpu than is committed on it"])
