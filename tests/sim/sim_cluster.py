"""A cluster with a seed: three candidates, some nodes, jobs, what goes wrong, and the laws that hold all the while.

one leader         what is written stands under the epoch of the leader key, which only grows
once               an attempt is started at most once
not twice          no task runs in two places
room               what runs on a node is not more than it has
conservation       in the scheduler's book: committed + free = capacity, held by those who run, and by nobody else
the end            when nothing goes wrong any more every job ends, and all is given back
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count

from sim_agent import Kept, SimAgent
from sim_network import Network, SimConnection
from sim_scheduler import KEYS, Candidate, Scheduler
from sim_store import Client, Server
from sim_world import World

from lavalite.base.errors import LavaLiteError
from lavalite.control.events import CancelRequested, RequeueRequested, SignalRequested, Specs, Submitted
from lavalite.control.explain import explain
from lavalite.control.settings import Settings
from lavalite.model.job import Array, Gang, JobRecord, JobSpec, Request
from lavalite.model.specs import QueueSpec
from lavalite.store.base import Put

TROUBLE_SECONDS, CALM_SECONDS = 45.0, 400.0
FENCE_SECONDS, LOST_SECONDS = 6, 17
BUGS = ("no-compare", "forgets-journal", "frees-nothing")


class LawBroken(AssertionError):
    """With the seed, and what happened last."""


class Cluster:
    """`bug`: one of BUGS is planted; empty: none."""

    def __init__(self, seed: int, bug: str = "") -> None:
        self.seed, self.bug = seed, bug
        self.world = World(seed)
        chance = self.world.random
        self.server = Server(self.world)
        self.server.on_write = self._written
        self.network = Network(self.world)
        queue = QueueSpec(
            "normal", default=True, fence_after_seconds=FENCE_SECONDS, lost_after_seconds=LOST_SECONDS, retries=2
        )
        settings = Settings(
            beat_seconds=1.0, silent_after_seconds=4.0, backoff_first_seconds=0.5, stop_grace_seconds=1
        )
        self.candidates = [
            Candidate(self.world, self.server, f"c{n}", Specs(queues={"normal": queue}), settings, 10 - n, bug)
            for n in range(1, 4)
        ]
        self.agents = [
            SimAgent(self.world, self.network, f"n{n}", chance.choice([2, 3, 4]), self._runs_seconds, self._started)
            for n in range(1, chance.randint(3, 4) + 1)
        ]
        for agent in self.agents:
            agent.connect = self._connect
            agent.forgets = bug == "forgets-journal"
        self.starts: Counter[str] = Counter()
        self.highest_epoch = (0, 0)
        self.acknowledged: dict[str, int] = {}
        """Submit key → the job's number, of those whose submit was answered."""
        self._sessions = count(1)
        self._seconds = {number: chance.uniform(0.5, 12.0) for number in range(1, 60)}
        self._wishes = [self._job(number) for number in range(chance.randint(6, 12))]
        for number, spec in enumerate(self._wishes):
            self.world.at(chance.uniform(3.0, TROUBLE_SECONDS * 0.8), self._submit, f"key-{number}", spec)
        for _ in range(chance.randint(0, 4)):
            self.world.at(chance.uniform(8.0, TROUBLE_SECONDS), self._meddle)
        self._plan_trouble()

    def _job(self, number: int) -> JobSpec:
        chance = self.world.random
        tasks = chance.choice([1, 1, 1, 2, 4])
        return JobSpec(
            command=["simulated"],
            user=chance.choice(["ada", "bob"]),
            array=Array(first=0, last=tasks - 1) if tasks > 1 else None,
            gang=Gang() if tasks == 2 and chance.random() < 0.6 else None,
            request=Request(cpu_milli=chance.choice([500, 1000, 1000, 2000])),
            rerunnable=chance.random() < 0.8,
            walltime_seconds=chance.choice([None, None, 8, 30]),
            queue="normal",
        )

    def _runs_seconds(self, attempt: str) -> float:
        return self._seconds[1 + hash_of(attempt) % 59]

    # --- what goes wrong ----------------------------------------------------------------------------------------

    def _plan_trouble(self) -> None:
        """Each sort at a few times, by chance; all of it is over when calm comes."""
        world, chance = self.world, self.world.random
        self.server.trouble = chance.choice([0.0, 0.0, 0.02, 0.1])
        self.network.trouble = chance.choice([0.0, 0.001, 0.01, 0.03])
        for agent in self.agents:
            agent.crash_share = chance.choice([0.0, 0.0, 0.005, 0.03])
        sorts = [self._freeze, self._kill_scheduler, self._cut, self._reboot, self._kill_agent, self._store_away]
        for sort in sorts:
            for _ in range(chance.choice([0, 1, 1, 2])):
                world.at(chance.uniform(4.0, TROUBLE_SECONDS - 1), sort)
        world.at(TROUBLE_SECONDS, self._calm)

    def _calm(self) -> None:
        self.world.tell("calm")
        self.server.trouble = self.network.trouble = 0.0
        for agent in self.agents:
            agent.crash_share = 0.0

    def _until_over(self, least: float, most: float) -> float:
        return min(self.world.random.uniform(least, most), max(0.1, TROUBLE_SECONDS - self.world.now))

    def _freeze(self) -> None:
        leading = [c for c in self.candidates if c.scheduler is not None]
        candidate = self.world.random.choice(leading or self.candidates)
        self.world.tell(f"{candidate.name}: is frozen")
        candidate.machine.freeze()
        self.world.after(self._until_over(1.0, 12.0), self._thaw, candidate)

    def _thaw(self, candidate: Candidate) -> None:
        self.world.tell(f"{candidate.name}: thaws")
        candidate.machine.thaw()

    def _kill_scheduler(self) -> None:
        for candidate in self.candidates:
            if not candidate.machine.frozen:
                candidate.machine.take(candidate.crash_scheduler)

    def _cut(self) -> None:
        name = self.world.random.choice([agent.name for agent in self.agents] + ["c1", "c2"])
        self.world.tell(f"{name}: is cut off")
        self.network.cut.add(name)
        self.world.after(self._until_over(2.0, 25.0), self._mend, name)

    def _mend(self, name: str) -> None:
        self.world.tell(f"{name}: is reached again")
        self.network.mend(name)

    def _reboot(self) -> None:
        self.world.random.choice(self.agents).reboot()

    def _kill_agent(self) -> None:
        self.world.random.choice(self.agents).die()

    def _store_away(self) -> None:
        self.world.tell("store: away")
        self.server.up = False
        self.world.after(self._until_over(0.5, 9.0), self._store_back)

    def _store_back(self) -> None:
        self.world.tell("store: back")
        self.server.up = True

    # --- people ---------------------------------------------------------------------------------------------------

    def leader(self) -> Scheduler | None:
        """One that serves and is not frozen: where more than one believes to lead, any of them."""
        serving = [
            c.scheduler for c in self.candidates if c.scheduler and c.scheduler.serves and not c.machine.frozen
        ]
        return self.world.random.choice(serving) if serving else None

    def _submit(self, key: str, spec: JobSpec) -> None:
        """Until it is answered; with the same key it is one job, however often it is asked."""
        if key in self.acknowledged:
            return
        self.world.after(self.world.random.uniform(1.0, 3.0), self._submit, key, spec)
        leader = self.leader()
        if leader is not None and leader.candidate.name not in self.network.cut:
            leader.candidate.machine.take(self._take_submit, leader, key, spec)

    def _take_submit(self, leader: Scheduler, key: str, spec: JobSpec) -> None:
        service = leader.service
        if service is None or not leader.serves or not leader.leash.holds():
            return
        known = service.state.submit_keys.get(key)
        if known is not None:
            done, number = service.settled(), known
        else:
            number = service.state.next_job_id()
            record = JobRecord(id=number, spec=spec, submitted_at=service.time.now(), submit_key=key)
            done = service.apply(Submitted(record))

        def answered(future: object) -> None:
            if done.exception() is None:
                before = self.acknowledged.setdefault(key, number)
                self._hold(before == number, f"{key} is job {before} and job {number}")

        done.add_done_callback(answered)

    def _meddle(self) -> None:
        leader = self.leader()
        if leader is not None and leader.service is not None:
            leader.candidate.machine.take(self._take_meddling, leader)

    def _take_meddling(self, leader: Scheduler) -> None:
        service, chance = leader.service, self.world.random
        if service is None or not leader.serves or not service.state.jobs:
            return
        job = chance.choice(sorted(service.state.jobs))
        event = chance.choice(
            [
                CancelRequested(job),
                RequeueRequested(job),
                SignalRequested(job, "suspend"),
                SignalRequested(job, "resume"),
            ]
        )
        self.world.tell(f"people: {event}")
        service.apply(event)
        if isinstance(event, SignalRequested) and event.action == "suspend":
            self.world.after(5.0, self._resume, job)

    def _resume(self, job: int) -> None:
        """Again and again: a signal is lost with the session that it was sent in, as people see."""
        leader = self.leader()
        if leader is not None and leader.service is not None:
            known = leader.service.state.jobs.get(job)
            if known is not None and not known.unfinished:
                return
            leader.candidate.machine.take(self._take_resume, leader, job)
        self.world.after(5.0, self._resume, job)

    @staticmethod
    def _take_resume(leader: Scheduler, job: int) -> None:
        if leader.service is not None and leader.serves:
            leader.service.apply(SignalRequested(job, "resume"))

    # --- agents ---------------------------------------------------------------------------------------------------

    def _connect(self, agent: SimAgent) -> None:
        """To whom its LIM says leads: the true one as a rule, now and then one that only believes so."""
        leader = self.leader()
        away = leader is None or {agent.name, leader.candidate.name} & self.network.cut
        if leader is None or away or not leader.serves:
            agent.connect_failed()
            return
        known = agent.highest_epoch()
        if known is not None and leader.epoch < known:
            agent.connect_failed()
            return
        connection = SimConnection(self.network, leader.candidate.machine, agent, next(self._sessions))
        leader.candidate.machine.take(self._adopt, leader, connection)
        agent.attach(connection, leader.epoch)

    @staticmethod
    def _adopt(leader: Scheduler, connection: SimConnection) -> None:
        if leader.serves:
            leader.adopt(connection)

    # --- laws -----------------------------------------------------------------------------------------------------

    def _hold(self, law: bool, otherwise: str) -> None:
        if not law:
            story = "\n".join(self.world.story)
            raise LawBroken(f"{story}\nseed {self.seed}{f', {self.bug} planted' if self.bug else ''}: {otherwise}")

    def _written(self, client: Client, puts: Sequence[Put], deletes: Sequence[str]) -> None:
        """Something was written: under the leadership that the store knows of, and no older one."""
        keys = {put.key for put in puts} | set(deletes)
        leader = self.server.records.get(KEYS.leader)
        if KEYS.leader in keys:
            epoch = (0, self.server.revision)
            self._hold(epoch > self.highest_epoch, f"epoch {epoch} after {self.highest_epoch}")
            self.highest_epoch = epoch
            return
        if keys:
            now = leader.create_revision if leader is not None else 0
            mine = client.epoch[1] if client.epoch is not None else -1
            self._hold(mine == now, f"{sorted(keys)[:3]} are written under epoch {mine}, and {now} leads")

    def _started(self, agent: SimAgent, kept: Kept) -> None:
        name = kept.attempt.id
        self.world.tell(f"{agent.name}: {name} starts")
        self.starts[name] += 1
        self._hold(self.starts[name] == 1, f"{name} is started {self.starts[name]} times")
        for other in self.agents:
            running = [k for k in other.kept.values() if k.state != "ended" and k is not kept and k.task == kept.task]
            self._hold(not running, f"{name} starts on {agent.name} while {running} run on {other.name}")
        used = sum(k.attempt.cpu_milli for k in agent.kept.values() if k.state != "ended")
        self._hold(used <= agent.cpu_milli, f"{agent.name} has {agent.cpu_milli} and {used} run there")
        record = self.server.records.get(KEYS.commitment(f"job/{kept.task.replace('.', '/')}"))
        self._hold(record is not None, f"{name} starts, and its commitment is not durable")

    def check(self) -> None:
        """What holds at any time of each scheduler that serves."""
        for candidate in self.candidates:
            self._hold(not candidate.faults, f"{candidate.faults}")
            self._hold(not candidate.machine.loop.faults, f"{candidate.machine.loop.faults}")
            service = candidate.scheduler.service if candidate.scheduler else None
            if service is None:
                continue
            state = service.state
            try:
                state.book.check()
            except LavaLiteError as error:
                self._hold(False, str(error))
            held = {owner for owner in state.book.owners() if owner.startswith("job/")}
            runs = {key.owner for key in state.runs}
            self._hold(held == runs, f"held by {sorted(held)}, and what runs is {sorted(runs)}")

    def run(self) -> None:
        """To the end, with all that goes wrong. Raises LawBroken."""
        checked = 0.0
        try:
            while self.world.now < TROUBLE_SECONDS + CALM_SECONDS:
                self.world.step()
                if self.world.now - checked >= 0.5:
                    checked = self.world.now
                    self.check()
                    if self.world.now > TROUBLE_SECONDS + 5 and self._is_over():
                        break
            self._check_end()
        finally:
            self.world.close()

    def _is_over(self) -> bool:
        leader = self.leader()
        if leader is None or leader.service is None or len(self.acknowledged) < len(self._wishes):
            return False
        return not leader.service.state.unfinished_tasks and not any(
            key.startswith(KEYS.commitment()) for key in self.server.records
        )

    def _check_end(self) -> None:
        leader = self.leader()
        self._hold(leader is not None and leader.service is not None, "nobody leads in the end")
        assert leader is not None and leader.service is not None
        state = leader.service.state
        missing = len(self._wishes) - len(self.acknowledged)
        self._hold(not missing, f"{missing} jobs were never let in")
        left = [
            explain(state, job, leader.service.time.now()).sentence for job in state.jobs.values() if job.unfinished
        ]
        self._hold(not left, f"these have not ended: {left}")
        held = sorted(key for key in self.server.records if key.startswith(KEYS.commitment()))
        self._hold(not held and not list(state.book.owners()), f"not given back: {held or list(state.book.owners())}")
        self._hold(set(self.acknowledged.values()) <= set(state.jobs), "a job that was let in is gone")
        running = [k.attempt.id for agent in self.agents for k in agent.kept.values() if k.state != "ended"]
        self._hold(not running, f"still run: {running}")


def hash_of(text: str) -> int:
    """Equal in every process."""
    return sum((at + 1) * ord(character) for at, character in enumerate(text))
