"""Whatever happens, in whatever order: the laws of control hold after every event, and everything ends.

capacity is conserved · nothing that fits is left out of the next pass · no transition outside the table · nothing is
dispatched before its commitment is durable · no attempt starts twice, nor while another of its task runs · no task
starts before what it depends on · nobody is beside a task that has its node for itself · no more tries than are
allowed · a new leader loads the same state · what is stored passes the audit at any moment
"""

from __future__ import annotations

from dataclasses import replace

from control_rules import ClusterRules
from control_world import KEYS, World, offer, spec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from lavalite.control.audit import audit
from lavalite.control.events import (
    CancelRequested,
    DrainRequested,
    HoldRequested,
    MembersSeen,
    ReleaseRequested,
    RequeueRequested,
    ResumeRequested,
    SignalRequested,
    Specs,
)
from lavalite.control.seating import RoomsNow, find, seats_in
from lavalite.control.settings import Settings
from lavalite.control.tasks import JobState
from lavalite.control.views import job as job_view
from lavalite.control.views import nodes, tasks
from lavalite.ledger.book import FLOATING
from lavalite.model.job import Array, Dependency, DependencyKind, Gang, Request
from lavalite.model.parts import Part
from lavalite.model.specs import HostSpec, PoolSpec, Preemption, QueueSpec

NODES = ("n1", "n2", "n3")
OFFERS = {
    "n1": offer("n1", cpu=4, gpus=2, fpgas=2),
    "n2": offer("n2", cpu=2),
    "n3": offer("n3", cpu=3, gpus=1, model="V100", fpgas=1),
}
QUEUES = {
    "normal": QueueSpec(
        "normal", 30, default=True, fence_after_seconds=100, lost_after_seconds=110, retries=1, max_preemptions=2
    ),
    "few": QueueSpec(
        "few",
        50,
        "round-robin",
        tasks_per_user=2,
        fence_after_seconds=50,
        lost_after_seconds=60,
    ),
}
POOLS = {"licences": PoolSpec("licences", floating={"matlab": 2})}
HOSTS = {
    "trainer": HostSpec("trainer", {"cpu": 2000, "gpu": 1000, "fpga": 1}),
    "small": HostSpec("small", {"cpu": 1000}),
}
JOBS = st.fixed_dictionaries(
    {
        "cpu_milli": st.sampled_from([500, 1000, 2000]),
        "gpu_milli": st.sampled_from([0, 0, 500, 1000]),
        "array": st.one_of(st.none(), st.builds(lambda n: Array(first=1, last=n), st.integers(2, 5))),
        "retries": st.none() | st.integers(0, 2),
        "retry_on": st.sampled_from([None, [], [1], ["SIGSEGV"]]),
        "rerunnable": st.sampled_from([True, True, False]),
        "hold": st.sampled_from([False, False, False, True]),
        "priority": st.integers(-1, 1),
        "queue": st.sampled_from(["normal", "few"]),
        "host": st.sampled_from(["", "", "", "trainer"]),
        "floating": st.sampled_from([{}, {}, {"matlab": 1}]),
        "special": st.sampled_from([{}, {}, {"fpga": 1}]),
        "user": st.sampled_from(["ada", "bob"]),
        "exclusive": st.sampled_from([False, False, False, False, True]),
    }
)


OTHER_PARTS = [{"cpu_milli": 1000}, {"cpu_milli": 2000, "gpu_milli": 1000}, {"gpu_milli": 500}]
GANGS = st.sampled_from([None, None, Gang(), Gang(nodes_least=2), Gang(tasks_per_node=1), Gang(nodes_most=1)])


class Cluster(ClusterRules):
    """Random submits, reports, wishes, losses of nodes, unwound commits and changes of leader."""

    @initialize(limit=st.sampled_from([2, 128]), mode=st.sampled_from(["requeue", "cancel", "suspend"]))
    def begin(self, limit: int, mode: str) -> None:
        self.queues = QUEUES | {"few": replace(QUEUES["few"], preemption=Preemption(mode))}
        self.world = World(Settings(max_placements=4, max_cancels=2, max_txn_operations=limit, keep_finished_jobs=3))
        self.requeued: set[int] = set()
        self.world.apply(Specs(POOLS, self.queues, HOSTS))
        for name in NODES:
            self.world.connect(name, OFFERS[name])

    @rule(
        job=JOBS,
        depends=st.lists(st.sampled_from([*DependencyKind]), max_size=2),
        which=st.sampled_from(["all", "some", "each"]),
        later=st.sampled_from([0, 30]),
        gang=GANGS,
        more=st.none() | st.sampled_from(OTHER_PARTS),
        pick=st.randoms(use_true_random=False),
    )
    def submit(
        self,
        job: dict[str, object],
        depends: list[DependencyKind],
        which: str,
        later: int,
        gang: Gang | None,
        more: dict[str, int] | None,
        pick,
    ) -> None:
        """Perhaps one that waits for jobs, for some tasks of them, or for each task of the same index.

        A gang perhaps has a part more.
        """
        for kind in depends if self.world.state.jobs else ():
            other = self.world.state.jobs[pick.choice(sorted(self.world.state.jobs)[-3:])]
            tasks = Array(first=other.indices[0], last=pick.choice(other.indices)) if which == "some" else None
            if which == "each":
                job["array"] = other.spec.array
            before = job.get("depends", [])
            alike = (
                which != "each" or not before or self.world.state.jobs[before[0].job].spec.array == other.spec.array
            )
            if alike:
                job["depends"] = [*before, Dependency(kind=kind, job=other.id, tasks=tasks, each=which == "each")]
        job["exclusive"] = job["exclusive"] and not job["host"]
        if gang is not None and isinstance(job["array"], Array):
            job |= {"gang": gang, "queue": "normal", "floating": {}}
            if more is not None:
                request = {
                    name: job.pop(name) for name in ("cpu_milli", "gpu_milli", "special", "floating", "exclusive")
                }
                tasks = min(2, len(job.pop("array").indices()))
                first = Part(name="first", tasks=tasks, request=Request(**request))
                job["parts"] = [first, Part(name="more", request=Request(**more))]
        self.world.submit(spec(**job, not_before=self.world.now + later if later else None))

    @rule(name=st.sampled_from(NODES))
    def report(self, name: str) -> None:
        self.world.report(name)

    @rule(
        pick=st.randoms(use_true_random=False),
        wish=st.sampled_from(["cancel", "force", "some", "requeue", "suspend", "resume", "hold", "release"]),
    )
    def wish(self, pick, wish: str) -> None:  # type: ignore[no-untyped-def]
        if not self.world.state.jobs:
            return
        job = pick.choice(sorted(self.world.state.jobs))
        if wish == "requeue":
            self.requeued.add(job)
        self.world.feed(
            {
                "cancel": CancelRequested(job),
                "force": CancelRequested(job, force=True),
                "some": CancelRequested(job, (0, 2)),
                "requeue": RequeueRequested(job),
                "suspend": SignalRequested(job, "suspend"),
                "resume": SignalRequested(job, "resume"),
                "hold": HoldRequested(job),
                "release": ReleaseRequested(job),
            }[wish]
        )

    @rule(
        name=st.sampled_from(NODES),
        what=st.sampled_from(["cut", "dead", "connect", "wipe", "reinstall", "reboot", "new"]),
    )
    def node(self, name: str, what: str) -> None:
        agent = self.world.agents[name]
        if what == "cut" and agent.connected:
            self.world.disconnect(name)
        elif what == "dead":
            agent.connected = False  # control has not noticed
        elif what == "connect":
            self.world.connect(name)
        elif what == "wipe":
            self.world.wipe(name)
        elif what == "reinstall":
            self.world.wipe(name)
            self.world.connect(name)
        elif what == "reboot":
            self.world.reboot(name)
        elif what == "new":
            self.world.wipe(name, reboot=True)

    @rule(
        name=st.sampled_from(NODES),
        drained=st.booleans(),
        deadline_seconds=st.none() | st.sampled_from([0, 3]),
        silent=st.booleans(),
    )
    def turn_away(self, name: str, drained: bool, deadline_seconds: int | None, silent: bool) -> None:
        drain = DrainRequested(name, deadline_seconds=deadline_seconds)
        self.world.feed(drain if drained else ResumeRequested(name))
        alive, mute = (set(), {name}) if silent else ({name}, set())
        self.world.feed(MembersSeen(frozenset(alive), frozenset(mute)))

    @rule(keep=st.booleans(), purge=st.booleans())
    def define(self, keep: bool, purge: bool) -> None:
        self.world.apply(Specs(POOLS, self.queues, HOSTS if keep else {}), purge=purge)

    @rule()
    @precondition(lambda self: len(self.world.store) > 5)
    def change_leader(self) -> None:
        self.world.change_leader()

    @rule()
    def reload(self) -> None:
        """What is stored is what is known, once all writes are through."""
        self.world.settle()
        before = _known(self.world)
        state = self.world.state
        self.world.change_leader()
        assert _known(self.world) == before
        assert {o: state.book.shares(o) for o in state.book.owners()} == {
            o: self.world.state.book.shares(o) for o in self.world.state.book.owners()
        }

    @invariant()
    def laws(self) -> None:
        if hasattr(self, "world"):
            self.world.check()
            _nothing_sleeps_that_fits(self.world)
            self._no_more_tries_than_allowed()
            assert all(n <= 2 for job in self.world.state.jobs.values() for n in job.preemptions.values())
            assert audit(KEYS, self.world.store, self.world.specs).faults == []

    def _no_more_tries_than_allowed(self) -> None:
        """Of tasks that nobody asked to begin again, and that are not begun again elsewhere at no cost."""
        tries: dict[tuple[int, int], int] = {}
        for attempt in self.world.starts:
            tries[attempt[:2]] = tries.get(attempt[:2], 0) + 1
        for (number, _), count in tries.items():
            job = self.world.state.jobs.get(number)
            if job is not None and not job.spec.rerunnable and not job.spec.gang and number not in self.requeued:
                retries = QUEUES[job.queue].retries if job.spec.retries is None else job.spec.retries
                assert count <= 1 + retries, f"job {number} was tried {count} times"

    def teardown(self) -> None:
        """Bring every node back and let everything end: then nobody holds anything."""
        if not hasattr(self, "world"):
            return
        w = self.world
        for job in list(w.state.jobs):
            w.feed(ReleaseRequested(job))
        for name in NODES:
            w.feed(ResumeRequested(name))
        w.feed(MembersSeen(frozenset(NODES), frozenset()))
        w.apply(Specs(POOLS, self.queues, HOSTS))
        for _ in range(60):
            for name in NODES:
                if not w.agents[name].connected:
                    w.connect(name)
                w.report(name)
            w.settle()
            for attempt in w.running():
                w.finish(attempt)
            w.settle()
            w.advance(40)
            w.check()
        for job in [j for j in w.state.jobs.values() if j.unfinished]:
            if job.spec.gang and job.class_key and not job.spec.host:
                seats = find(w.state, w.state.classes[job.class_key], job, w.now)
                assert seats.fit < len(job.codes) and not seats.seats, f"gang {job.id} has room and does not start"
                continue
            waits = job.unmet or b"B" in job.codes or job.spec.host or _is_kept_out(w, job)
            assert waits, f"job {job.id} never ended: {bytes(job.codes)!r}"
        assert not [o for o in w.state.book.owners() if o.startswith("job/")]
        assert not [key for key in w.store if "/commitments/job/" in key]
        assert all(
            w.state.book.committed(name, kind)
            == sum(p.amount for h in w.state.hosts.values() for p in h.parts if (p.provider, p.kind) == (name, kind))
            for name in NODES
            for kind in ("cpu", "gpu", "fpga")
        )


def _is_kept_out(world: World, job: JobState) -> bool:
    """Whether it is to have a node for itself, and hosts have parts of all that it could be on."""
    request, book = job.spec.request, world.state.book
    hosts = {part.provider for host in world.state.hosts.values() for part in host.parts}
    large = {name for name in NODES if all(book.capacity(name, k) >= n for k, n in request.amounts().items())}
    return request.exclusive and large <= hosts


def _nothing_sleeps_that_fits(world: World) -> None:
    """A class that no pass looks at has no room beside what is kept for others, unless a pass is due."""
    state = world.state
    shapes = {waiting.shape for waiting in state.classes.values()}
    assert len(state.asleep) == sum(shape in state.asleep for shape in shapes), "one sleeps of which nobody waits"
    state.refresh_columns(world.now)
    for waiting in state.classes.values():
        if waiting.shape in state.asleep and not state.schedule_wanted:
            job = state.jobs[waiting.jobs[0][1]]
            tasks_at_once = len(job.codes) if job.spec.gang is not None else 1
            floating = job.spec.request.floating.items()
            if any(state.book.free(FLOATING, kind) < amount * tasks_at_once for kind, amount in floating):
                continue
            with state.plan.leaving_out(job.id):
                room = RoomsNow(state, job, world.now)
                if job.spec.gang is not None:
                    assert not seats_in(state, waiting, job, room).seats, f"{waiting.key} sleeps"
                else:
                    assert not room.rows(waiting.wanted), f"{waiting.key} sleeps"


def _known(world: World) -> dict[str, object]:
    state = world.state
    return {
        "jobs": [{**job_view(state, job), "tasks": tasks(state, job)} for job in state.jobs.values()],
        "nodes": [
            {k: v for k, v in node.items() if k in ("name", "labels", "resources", "hosts", "journal_id")}
            for node in nodes(state, world.now)
        ],
        # Why one waits is worked out anew, and at first nobody is connected.
        "hosts": {name: host.model_dump(exclude={"reason"}) for name, host in state.hosts.items()},
        # One that is due is over with the next event, and a new leader has had one.
        "wakes": {
            job.id: ({p: at for p, at in job.wakes.items() if at > world.now}, dict(job.charges), job.held)
            for job in state.jobs.values()
        },
    }


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
