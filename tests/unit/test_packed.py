"""What is held packed comes out as it went in, unknown fields and all, and equal things are unpacked once."""

from __future__ import annotations

from lavalite.control.node_state import NodeState
from lavalite.control.tasks import OF_ONE_JOB, JobState
from lavalite.model.job import Array, Backoff, Dependency, Gang, JobSpec, Request
from lavalite.model.resources import Device, NodeOffer, Resource

SPECS = [
    JobSpec(command=["true"]),
    JobSpec(
        name="all",
        command=["echo", "é", ""],
        array=Array(first=1, last=9, step=2),
        gang=Gang(tasks_per_node=2, within="rack"),
        queue="normal",
        host="web",
        request=Request(cpu_milli=0, memory_bytes=2**40, floating={"licence": 2}, pools={"cpu": "general"}),
        priority=-3,
        walltime_seconds=60,
        retries=0,
        retry_on=[1, -9],
        backoff=Backoff(first_seconds=1, factor=3),
        rerunnable=True,
        hold=True,
        not_before=1.5,
        depends=[Dependency(job=3, each=True)],
        environment={"A": "b"},
        group="staff",
        user="ada",
        uid=0,
        gid=0,
    ),
    JobSpec.model_validate({"command": ["true"], "retry_on": [], "of_a_later_release": {"x": [1, None]}}),
]


def test_a_job_has_the_spec_that_it_was_given() -> None:
    for number, spec in enumerate(SPECS, 1):
        job = JobState.new(number, spec, 0.0)
        assert job.spec == spec and job.spec.model_dump() == spec.model_dump()
        assert (job.user, job.name, job.host) == (spec.user, spec.name, spec.host)
        assert job.is_gang == (spec.gang is not None)
        assert JobState.new(number + 10, spec, 0.0).spec is job.spec, "equal specs are one"


def test_what_a_job_asks_for_is_one_for_all_that_differ_in_what_is_of_one_job() -> None:
    for number, spec in enumerate(SPECS, 1):
        job = JobState.new(number, spec, 0.0)
        assert job.asks.model_dump(exclude=OF_ONE_JOB) == spec.model_dump(exclude=OF_ONE_JOB)
        other = spec.model_copy(update={"name": "other", "command": ["false"], "retries": 7, "hold": True})
        assert JobState.new(number + 10, other, 0.0).asks is job.asks
        dearer = spec.model_copy(update={"request": Request(cpu_milli=77)})
        assert JobState.new(number + 20, dearer, 0.0).asks.request.cpu_milli == 77


def test_a_node_has_the_offer_that_it_made() -> None:
    gpu = Device(id="GPU-1", model="A100", memory_bytes=2**36, numa_node=0, attributes={"mig": "no"})
    found = Resource(name="n1/gpu", kind="gpu", amount=1000, unit="milli-GPU", owner="n1", version=7, devices=[gpu])
    first = NodeOffer(node="n1", boot_id="b1", version=3, labels={"rack": ["r1"]}, resources=[found])
    later = NodeOffer.model_validate({"node": "n1", "boot_id": "b2", "of_a_later_release": 1})
    node = NodeState.of(first)
    for offer in (first, later):
        node.set_offer(offer)
        assert node.offer == offer and node.offer.model_dump() == offer.model_dump()
        assert (node.boot_id, node.labels) == (offer.boot_id, offer.labels)
