"""A cluster in memory around `decide`: a store that is a dictionary, a FIFO of writes, agents with journals.

It keeps the promises that the shell, the committer and the agents make, and checks those that control makes.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from part_agent import PartAgent

from lavalite.control.actions import (
    Acknowledge,
    Action,
    AttemptStart,
    CloseSession,
    Commit,
    Effect,
    PartOrdered,
    Persist,
    SendDispatch,
    SendParts,
    SendStop,
)
from lavalite.control.decide import decide
from lavalite.control.events import (
    AttemptReported,
    CommitConfirmed,
    CommitUnwound,
    DefinitionApplied,
    Event,
    Loaded,
    NodeBeat,
    NodeDisconnected,
    NodeRegistered,
    NodeReported,
    PartsReported,
    Specs,
    Submitted,
    Tick,
)
from lavalite.control.hosts.orders import part_ids
from lavalite.control.records import load
from lavalite.control.settings import Settings
from lavalite.control.state import ClusterState
from lavalite.control.tasks import FINAL_CODES, STATES, JobState
from lavalite.control.views import task as task_view
from lavalite.model.host import LogicalHost
from lavalite.model.job import CommitmentRecord, Dependency, DependencyKind, JobRecord, JobSpec, Request
from lavalite.model.resources import WHOLE, Device, NodeOffer, Resource
from lavalite.model.task import AttemptId, TaskState, before_restore
from lavalite.store.keys import Keys

KEYS = Keys("test")
GIB = 1024**3
ADDRESSES = "fabric-{}"
ENDED = ("succeeded", "failed", "cancelled")


def offer(
    node: str,
    *,
    cpu: int = 4,
    memory: int = 8 * GIB,
    gpus: int = 0,
    model: str = "A100",
    fpgas: int = 0,
    board: str = "U250",
    **labels: str,
) -> NodeOffer:
    """A node with so many cores, bytes, GPUs, and devices of a special kind."""
    devices = [Device(id=f"{node}-gpu{i}", model=model, memory_bytes=80 * GIB) for i in range(gpus)]
    resources = [
        Resource(name=f"{node}/cpu", kind="cpu", amount=cpu * WHOLE, unit="milli-core", owner=node),
        Resource(name=f"{node}/memory", kind="memory", amount=memory, unit="byte", owner=node),
    ]
    if gpus:
        resources.append(
            Resource(
                name=f"{node}/gpu", kind="gpu", amount=gpus * WHOLE, unit="milli-GPU", owner=node, devices=devices
            )
        )
    if fpgas:
        boards = [Device(id=f"/dev/{node}-fpga{i}", model=board) for i in range(fpgas)]
        resources.append(
            Resource(name=f"{node}/fpga", kind="fpga", amount=fpgas, unit="device", owner=node, devices=boards)
        )
    return NodeOffer(node=node, boot_id="boot-1", labels={k: [v] for k, v in labels.items()}, resources=resources)


def spec(**fields: object) -> JobSpec:
    """A job of one core, but for what is said."""
    request = {k: fields.pop(k) for k in list(fields) if k in Request.model_fields and k != "pools"}
    values = {"command": ["true"], "user": "ada", "request": Request(**request), **fields}  # type: ignore[arg-type]
    return JobSpec(**values)  # type: ignore[arg-type]


def world(*offers: NodeOffer) -> World:
    """With these nodes, connected."""
    made = World()
    for one in offers:
        made.connect(one.node, one)
    made.settle()
    return made


@dataclass
class Agent:
    """Journals before it starts, starts each attempt once, repeats reports until they are acknowledged."""

    name: str
    offer: NodeOffer
    journal_id: str
    boot_id: str = "boot-1"
    connected: bool = False
    acked_at: float = 0.0
    seq: int = 0
    running: dict[AttemptId, bool] = field(default_factory=dict)
    """Attempt → whether it is suspended."""
    fences: dict[AttemptId, float] = field(default_factory=dict)
    known: set[AttemptId] = field(default_factory=set)
    unacked: dict[AttemptId, tuple[int, AttemptReported]] = field(default_factory=dict)
    settled: dict[AttemptId, AttemptReported] = field(default_factory=dict)
    """Over, and acknowledged: told again to who may have forgotten."""
    parts: PartAgent = field(default_factory=PartAgent)
    boards: dict[AttemptId, list[str]] = field(default_factory=dict)
    """Attempt → the devices of special kinds that it was given."""
    ghosts: dict[AttemptId, float] = field(default_factory=dict)
    """Started by an agent whose journal is lost: they run on, unknown to this one, until their keeper fences them."""


class World:
    """`now` only moves by `advance`. Every check failing is an AssertionError."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.now = 1000.0
        self.epoch = (0, 1)
        self.store: dict[str, bytes] = {}
        self.pipeline: deque[Commit | Persist] = deque()
        self.specs = Specs()
        self.agents: dict[str, Agent] = {}
        self.starts: dict[AttemptId, int] = {}
        self.stops: list[SendStop] = []
        self.closed: list[CloseSession] = []
        self.state = ClusterState(KEYS, self.epoch, self.settings)
        self.feed(Loaded())

    # --- doing ------------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> list[Action]:
        """Let control decide, and begin to carry out what it says."""
        actions = decide(self.state, event, self.now)
        for action in actions:
            if isinstance(action, Commit | Persist):
                self.pipeline.append(action)
            else:
                self.carry_out(action)
        return actions

    def write(self, *, unwind: bool = False) -> bool:
        """Carry out the first write that is queued, or find that it did not happen (commits only)."""
        if not self.pipeline:
            return False
        action = self.pipeline.popleft()
        if isinstance(action, Commit) and unwind and not action.retry:
            self.feed(CommitUnwound(action.batch_id))
            return True
        assert not (action.puts.keys() & action.deletes)
        assert len(action.puts) + len(action.deletes) <= self.settings.max_txn_operations
        for key in action.deletes:
            self.store.pop(key, None)
        self.store.update(action.puts)
        if isinstance(action, Commit):
            self.feed(CommitConfirmed(action.batch_id))
        else:
            for effect in action.then:
                self.carry_out(effect)
        return True

    def settle(self) -> None:
        """Let all writes through, and what follows from them."""
        for _ in range(10_000):
            if not self.write():
                return
        raise AssertionError("writes without end")

    def carry_out(self, effect: Effect) -> None:
        if isinstance(effect, SendDispatch):
            for start in effect.attempts:
                self._durable(effect.node, start.id)
                agent = self.agents.get(effect.node)
                if agent and agent.connected:
                    self._start(agent, start.id, start.journal_id, start.fence_after_seconds)
                    self._note_devices(agent, start)
        elif isinstance(effect, SendStop):
            self.stops.append(effect)
            agent = self.agents.get(effect.node)
            if agent and agent.connected and effect.id in agent.running:
                if effect.signal in (18, 19):
                    agent.running[effect.id] = effect.signal == 19
                    self._note(agent, effect.id, "suspended" if effect.signal == 19 else "resumed")
                else:
                    self._note_end(agent, effect.id, -15, "stop")
        elif isinstance(effect, Acknowledge):
            agent = self.agents.get(effect.node)
            if agent and agent.connected:
                for attempt, (seq, report) in list(agent.unacked.items()):
                    if 0 < seq <= effect.seq:
                        del agent.unacked[attempt]
                        if report.state in ("ended", "refused"):
                            agent.known.discard(attempt)
                            agent.settled[attempt] = report
        elif isinstance(effect, SendParts):
            agent = self.agents.get(effect.node)
            for order in effect.orders:
                self._step_is_durable(effect.node, order)
            if agent and agent.connected:
                agent.parts.take(effect.orders)
                if agent.parts.eager:
                    self.parts_of(effect.node)
        elif isinstance(effect, CloseSession):
            self.closed.append(effect)
            if effect.node in self.agents and self.agents[effect.node].connected:
                self.disconnect(effect.node)

    def apply(self, specs: Specs, document: bytes = b"{}", *, purge: bool = False) -> None:
        self.specs = specs
        self.feed(DefinitionApplied(document, specs, purge))

    def submit(self, job: JobSpec, key: str = "") -> int:
        job_id = self.state.next_job_id()
        self.feed(Submitted(JobRecord(id=job_id, spec=job, submitted_at=self.now, submit_key=key)))
        return job_id

    def advance(self, seconds: float, *, beats: bool = True) -> None:
        """Let time pass; connected agents beat, others fence what they must."""
        self.now += seconds
        for agent in list(self.agents.values()):
            if agent.connected and beats:
                self.feed(NodeBeat(agent.name))
                agent.acked_at = self.now
            self._fence(agent)
        self.feed(Tick())

    # --- agents -----------------------------------------------------------------------------------------------

    def connect(self, name: str, node_offer: NodeOffer | None = None) -> None:
        """The agent registers with all that its journal holds."""
        agent = self.agents.get(name)
        if agent is None:
            assert node_offer is not None
            agent = self.agents[name] = Agent(name, node_offer, f"{name}-journal-1")
        self._fence(agent)
        agent.connected, agent.acked_at = True, self.now
        told = [report for _, report in agent.unacked.values()]
        listed = {report.id for report in told}
        for attempt, suspended in agent.running.items():
            if attempt not in listed:
                told.append(AttemptReported(attempt, "suspended" if suspended else "started", self.now))
        told += [report for attempt, report in agent.settled.items() if before_restore(attempt.job, self.epoch)]
        agent.parts.forget_orders()
        self.feed(
            NodeRegistered(
                name, agent.boot_id, agent.journal_id, agent.offer, tuple(told), fabric_address=ADDRESSES.format(name)
            )
        )
        # What the journal told is repeated in a report that can be acknowledged.
        self.report(name)

    def parts_of(self, name: str, orders: int = 1000) -> None:
        """The agent carries out so many of its orders, and tells all that it has if it is connected."""
        agent = self.agents[name]
        agent.parts.work(orders)
        if agent.connected and agent.parts.has_news():
            self.feed(PartsReported(name, agent.parts.told()))

    def disconnect(self, name: str) -> None:
        self.agents[name].connected = False
        self.feed(NodeDisconnected(name))

    def wipe(self, name: str, *, reboot: bool = False) -> None:
        """The agent's disk is lost: a new journal. What it ran runs on, unless the machine is rebooted."""
        agent = self.agents[name]
        if agent.connected:
            self.disconnect(name)
        until = {a: agent.acked_at + fence if (fence := agent.fences[a]) else float("inf") for a in agent.running}
        agent.ghosts.update(until)
        agent.journal_id = agent.journal_id.rpartition("-")[0] + f"-{int(agent.journal_id.rpartition('-')[2]) + 1}"
        agent.running, agent.known, agent.unacked, agent.settled = {}, set(), {}, {}
        if reboot:
            self._reboot(agent)

    def reboot(self, name: str) -> None:
        """The machine restarts; the journal is there and says that what ran is lost."""
        agent = self.agents[name]
        if agent.connected:
            self.disconnect(name)
        for attempt in list(agent.running):
            self._note_end(agent, attempt, None, "lost")
        self._reboot(agent)

    def report(self, name: str) -> None:
        """Send all that is not acknowledged, in one report."""
        agent = self.agents[name]
        if not agent.connected or not agent.unacked:
            return
        agent.seq += 1
        agent.unacked = {attempt: (agent.seq, report) for attempt, (_, report) in agent.unacked.items()}
        self.feed(NodeReported(name, agent.seq, tuple(report for _, report in agent.unacked.values())))

    def finish(self, attempt: AttemptId, exit_code: int = 0, reason: str = "exit") -> None:
        """An attempt ends by itself, wherever it runs."""
        for agent in self.agents.values():
            if attempt in agent.running:
                self._note_end(agent, attempt, exit_code, reason)
                self.report(agent.name)

    def refuse_next(self, name: str) -> None:
        """Everything dispatched there from now on is refused."""
        self.agents[name].known.add(REFUSES)

    def running(self) -> list[AttemptId]:
        return [attempt for agent in self.agents.values() for attempt in agent.running]

    def _note_devices(self, agent: Agent, start: AttemptStart) -> None:
        """Nobody is given a device of a special kind that somebody runs with who is known of."""
        agent.boards[start.id] = boards = [d for kind, ids in start.devices.items() if kind == "fpga" for d in ids]
        for other in agent.running:
            shared = set(boards) & set(agent.boards.get(other, [])) if other != start.id else set()
            assert not shared, f"{start.id} is given {shared}, with which {other} runs"

    def _start(self, agent: Agent, attempt: AttemptId, journal_id: str, fence_after: float) -> None:
        if journal_id != agent.journal_id or attempt in agent.known:
            return
        if attempt in agent.settled:
            agent.known.add(attempt)
            agent.unacked[attempt] = (0, agent.settled[attempt])
            return
        agent.known.add(attempt)
        if REFUSES in agent.known:
            agent.unacked[attempt] = (0, AttemptReported(attempt, "refused", self.now, None, "no such user"))
            return
        job = self.state.jobs[attempt.job]
        for dependency in job.spec.depends:
            self._check_dependency(attempt, dependency)
        self._check_whole(job, attempt)
        for other_agent in self.agents.values():
            for other_attempt in (*other_agent.running, *other_agent.ghosts):
                assert other_attempt[:2] != attempt[:2], f"{attempt} starts while {other_attempt} runs"
        self.starts[attempt] = self.starts.get(attempt, 0) + 1
        assert self.starts[attempt] == 1, f"{attempt} was started twice"
        agent.running[attempt] = False
        agent.fences[attempt] = fence_after
        self._note(agent, attempt, "started")

    def _check_whole(self, job: JobState, attempt: AttemptId) -> None:
        """None of a gang starts before all of it are durable, each in the same attempt."""
        for index in job.indices if job.spec.gang is not None else ():
            record = self.store.get(KEYS.commitment(f"job/{job.id}/{index}"))
            held = CommitmentRecord.model_validate_json(record).attempt if record else 0
            over = job.attempts_of(job.indices.index(index))
            assert attempt.attempt in (held, over), f"{attempt} starts, and task {index} is at {held}, {over}"

    def _check_dependency(self, attempt: AttemptId, dependency: Dependency) -> None:
        """Task by task, in the plainest way: what was to be before it starts is so."""
        other = self.state.jobs[dependency.job]
        named = dependency.tasks.indices() if dependency.tasks else other.indices
        waited_for = [attempt.task] if dependency.each else list(named)
        ends = [task_view(self.state, other, other.indices.index(index))["state"] for index in waited_for]
        said = f"{attempt} starts, but of {dependency.text()} it is {ends}"
        if dependency.kind is DependencyKind.STARTED:
            begun = {a.task for a in self.starts if a.job == other.id}
            assert all(i in begun or s in ENDED for i, s in zip(waited_for, ends, strict=True)), said
        else:
            assert set(ends) <= set(ENDED), said
            well = set(ends) == {"succeeded"}
            assert {DependencyKind.DONE: well, DependencyKind.EXIT: not well}.get(dependency.kind, True), said

    def _note(self, agent: Agent, attempt: AttemptId, what: str) -> None:
        agent.unacked[attempt] = (0, AttemptReported(attempt, what, self.now))  # type: ignore[arg-type]

    def _note_end(self, agent: Agent, attempt: AttemptId, exit_code: int | None, reason: str) -> None:
        agent.running.pop(attempt)
        agent.fences.pop(attempt, None)
        agent.unacked[attempt] = (0, AttemptReported(attempt, "ended", self.now, exit_code, reason))

    def _reboot(self, agent: Agent) -> None:
        agent.ghosts = {}
        agent.boot_id = f"boot-{int(agent.boot_id.rpartition('-')[2]) + 1}"

    def _fence(self, agent: Agent) -> None:
        silent_seconds = self.now - agent.acked_at
        for attempt, fence_after in list(agent.fences.items()):
            if attempt in agent.running and not agent.connected and 0 < fence_after <= silent_seconds:
                self._note_end(agent, attempt, -9, "fence")
        agent.ghosts = {attempt: until for attempt, until in agent.ghosts.items() if until > self.now}

    def _durable(self, node: str, attempt: AttemptId) -> None:
        """Nothing is dispatched before its commitment is durable."""
        record = self.store.get(KEYS.commitment(f"job/{attempt.job}/{attempt.task}"))
        assert record is not None, f"{attempt} is dispatched, its commitment is not durable"
        commitment = CommitmentRecord.model_validate_json(record)
        assert (commitment.attempt, commitment.node) == (attempt.attempt, node)

    def _step_is_durable(self, node: str, order: PartOrdered) -> None:
        """What is ordered stands in the host's record: nothing is attached at a step that is not written."""
        record = self.store.get(KEYS.host(order.host))
        host = LogicalHost.model_validate_json(record) if record is not None else None
        if order.want == "absent":
            gone = host is None or host.incarnation != order.incarnation or order.part not in part_ids(host)
            at = ("withdraw",) if order.role in ("circuit", "export") else ("detach", "withdraw")
            assert gone or (host is not None and host.step in at), f"{order} at {host}"
            return
        assert host is not None and host.incarnation == order.incarnation, f"{order}, and the record is {host}"
        assert order.part in part_ids(host)
        if order.role in ("disk", "swap", "vm") and host.state == "composing":
            assert host.step == "attach", f"{order} at {host.step}"

    # --- leaders ----------------------------------------------------------------------------------------------

    def change_leader(self) -> None:
        """The leader dies with what it had not written; another one loads what is stored."""
        self.pipeline.clear()
        self.epoch = (self.epoch[0], self.epoch[1] + 1)
        for agent in self.agents.values():
            agent.connected = False
        document = self.store.get(KEYS.definition)
        specs = self.specs if document is not None else Specs()
        self.state = load(KEYS, self.epoch, self.store.items(), specs=specs, settings=self.settings)
        self.feed(Loaded())

    def restore(self, saved: dict[str, bytes]) -> None:
        """The store becomes what it was, and a new generation begins; agents and what they run are as they are."""
        self.store = saved | {KEYS.generation: b"%d" % (self.epoch[0] + 1)}
        self.epoch = (self.epoch[0] + 1, 0)
        self.change_leader()

    def what_runs_has_not_failed(self) -> None:
        """A task whose attempt runs has not failed, on an agent that keeps its journal."""
        for attempt in self.running():
            job = self.state.jobs.get(attempt.job)
            position = job.position_of(attempt.task) if job is not None else None
            if job is not None and position is not None:
                assert job.state_of(position) is not TaskState.FAILED, f"{attempt} runs: {job.ends.get(position)}"

    # --- checking ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """What holds between any two events."""
        state = self.state
        state.book.check()
        assert state.refused_by_book == 0
        assert {key.owner for key in state.runs} == {o for o in state.book.owners() if o.startswith("job/")}
        assert list(state.sums_faults()) == []
        for job in state.jobs.values():
            _check_job(state, job)
        users = Counter(job.spec.user for job in state.jobs.values() if job.unfinished)
        assert +state.unfinished_jobs == users
        assert state.unfinished_tasks == sum(job.unfinished for job in state.jobs.values())
        for key, run in state.runs.items():
            job = state.jobs[key.job]
            assert job.state_of(run.position) is (TaskState.PENDING if run.assumed else run.state)
            assert key in state.nodes[run.node].runs
        self._check_alone()
        in_flight = {key for batch in state.batches.values() for key in batch.tasks}
        assert in_flight == {key for key, run in state.runs.items() if run.assumed}
        anchored = {(anchor, name) for anchor, names in state._anchored.items() for name in names}
        assert anchored == {(host.anchor, host.name) for host in state.hosts.values()}
        for host in state.hosts.values():
            held = state.book.holds(f"host/{host.name}")
            assert held == bool(host.parts), host

    def _check_alone(self) -> None:
        """Nobody holds anything of a node that a task has for itself, nor has been told to run there."""
        state = self.state
        for key, run in state.runs.items():
            if not state.jobs[key.job].spec.request.exclusive or before_restore(key.job, self.epoch):
                continue
            beside = [other for other in state.nodes[run.node].runs if other != key]
            shares = ((owner, share) for owner in state.book.owners() for share in state.book.shares(owner))
            beside += [owner for owner, share in shares if share.provider == run.node and owner != key.owner]
            assert not beside, f"{key} is to be alone on {run.node}, and beside it are {beside}"


def _check_job(state: ClusterState, job: JobState) -> None:
    for code, count in job.counts.items():
        assert job.codes.count(code) == count
    assert job.unfinished == sum(1 for code in job.codes if code not in FINAL_CODES)
    assert b"P" not in job.codes[: job.cursor]
    held = sum(1 for key in state.runs if key.job == job.id)
    assert held == sum(1 for code in job.codes if chr(code) in "ACRSU")
    _check_gang(state, job)
    waits = bool(job.startable) and not (job.held or job.cancelling or job.unmet or job.sleeping)
    waits = waits and not state.waits_for_journals(job)
    assert waits == bool(job.class_key)
    if waits:
        waiting = state.classes[job.class_key].jobs
        assert waiting == sorted(waiting) and (-job.spec.priority, job.id) in waiting
    assert all(STATES[job.codes[p]] is TaskState.PENDING for p in job.wakes)


def _check_gang(state: ClusterState, job: JobState) -> None:
    """Its tasks wait together, or all that still hold something are to end."""
    if job.spec.gang is None or state.waits_for_journals(job):
        return
    waiting = sum(job.counts.get(code, 0) for code in b"PWB")
    if waiting:
        runs = [run for key, run in state.runs.items() if key.job == job.id]
        assert waiting + len(runs) == len(job.codes), f"some of gang {job.id} have ended, and others wait"
        assert all(run.requeue_requested or run.cancel_requested for run in runs), f"gang {job.id} is torn"


REFUSES = AttemptId(0, 0, 0)
