"""The election: its table of transitions, and its laws under simulated delays, losses and pauses."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavalite.lim.core import (
    GIVE_UP_AFTER,
    REASON_CANNOT_RUN,
    REASON_DEADLINE,
    REASON_KEY_LOST,
    REASON_RESIGNED,
    Election,
    State,
    Timing,
)
from lavalite.lim.steps import (
    Action,
    Campaign,
    CampaignUnknown,
    Drain,
    Elected,
    Event,
    Extend,
    KeyChanged,
    KeyLost,
    Lead,
    LeaderKey,
    LeaderRead,
    NotElected,
    ReadFailed,
    ReadLeader,
    Renew,
    RenewalFailed,
    Renewed,
    ResignAsked,
    Revoke,
    RevokeEnded,
    SchedulerFails,
    SchedulerStopped,
    StepDown,
    Tick,
)

TIMING = Timing(ttl_seconds=5, priority=10)  # margin 1 s, so a deadline is 4 s after sending
OTHER = LeaderKey("other", "xyz.1", (0, 7), lease_id=9)


def following(timing: Timing = TIMING) -> Election:
    return Election(timing, "abc")


def leading(timing: Timing = TIMING) -> Election:
    """Elected at 0 under lease 42 and revision 17; the deadline is 4/5 of the ttl."""
    election = following(timing)
    assert election.handle(Tick(), 0) == [ReadLeader(1)]
    assert election.handle(LeaderRead(1, None), 0) == [Campaign(2, "abc.2")]
    assert election.handle(Elected(2, 0, 42, (0, 17)), 0.1) == [Lead((0, 17), timing.ttl_seconds * 0.8)]
    return election


def test_a_leader_renews_and_extends_its_deadline_from_when_it_sent() -> None:
    election = leading()
    assert election.wake_at == 1
    assert election.handle(Tick(), 1) == [Renew(3, 42, 17)]
    assert election.handle(Renewed(3, 1.0), 2.9) == [Extend((0, 17), 5.0)]
    assert election.leads(4.99) and not election.leads(5.0)


def test_failed_renewals_end_in_a_step_down_at_the_own_deadline() -> None:
    election = leading()
    election.handle(Tick(), 1)
    assert election.handle(RenewalFailed(3), 2.5) == []
    assert election.handle(Tick(), 3) == [Renew(4, 42, 17)]
    assert election.wake_at == 4
    assert election.handle(Tick(), 4) == [StepDown((0, 17), 4.5, REASON_DEADLINE)]
    assert election.handle(Renewed(4, 3), 4.1) == [], "a late good answer changes nothing any more"
    assert election.handle(SchedulerStopped(), 4.5) == [Revoke(5, 42)]
    assert election.handle(RevokeEnded(5), 4.6) == []
    assert election.state is State.FOLLOWING


@pytest.mark.parametrize("news", [Renewed(3, 1.0), Renewed(3, 59.9), Tick(), ResignAsked(), KeyChanged()])
def test_one_that_wakes_behind_its_deadline_steps_down_first(news: Event) -> None:
    election = leading()
    election.handle(Tick(), 1)
    actions = election.handle(news, 60)
    assert actions == [StepDown((0, 17), 4.5, REASON_DEADLINE)], "kill_at lies in the past: kill at once"


def test_a_lost_key_means_step_down_now() -> None:
    election = leading()
    election.handle(Tick(), 1)
    assert election.handle(KeyLost(3), 1.5) == [StepDown((0, 17), 2.0, REASON_KEY_LOST)]
    assert not election.leads(1.5)


def test_resigning_drains_renews_revokes_and_lets_others_go_first() -> None:
    election = leading()
    assert election.handle(ResignAsked(), 0.5) == [Drain((0, 17), 10.5)]
    assert election.handle(Tick(), 1) == [Renew(3, 42, 17)]
    assert election.handle(Renewed(3, 1), 1.1) == [Extend((0, 17), 5)]
    assert election.handle(SchedulerStopped(), 1.5) == [StepDown((0, 17), 2.0, REASON_RESIGNED)]
    assert election.handle(SchedulerStopped(), 1.6) == [Revoke(4, 42)]
    election.handle(RevokeEnded(4), 2)
    assert election.handle(Tick(), 2) == [ReadLeader(5)]
    assert election.handle(LeaderRead(5, None), 2) == []
    assert election.state is State.WAITING
    election.handle(Tick(), 16.9)  # reads again
    assert election.handle(LeaderRead(6, None), 16.9) == []
    assert election.handle(Tick(), 17) == [Campaign(7, "abc.7")], "2 + cool-down of 3 × 5"


def resigned(asked: Event) -> Election:
    """At 2, with the lease given back; the key is read as absent."""
    election = leading()
    election.handle(asked, 0.5)
    election.handle(SchedulerStopped(), 1.5)
    election.handle(SchedulerStopped(), 1.6)
    election.handle(RevokeEnded(3), 2)
    assert election.handle(Tick(), 2) == [ReadLeader(4)]
    return election


def test_who_has_nobody_to_give_way_to_comes_back_at_once() -> None:
    assert resigned(ResignAsked(rivals=False)).handle(LeaderRead(4, None), 2) == [Campaign(5, "abc.5")]
    assert resigned(ResignAsked(rivals=True)).handle(LeaderRead(4, None), 2) == []


def test_a_leader_whose_scheduler_cannot_run_lets_another_try() -> None:
    election = leading()
    for times in range(1, GIVE_UP_AFTER):
        assert election.handle(SchedulerFails(times, rivals=True), 0.5) == []
    assert election.handle(SchedulerFails(GIVE_UP_AFTER, rivals=True), 0.5) == [Drain((0, 17), 10.5)]
    assert election.handle(SchedulerFails(GIVE_UP_AFTER + 1, rivals=True), 0.6) == [], "it does already"
    assert election.handle(SchedulerStopped(), 1) == [StepDown((0, 17), 1.5, REASON_CANNOT_RUN)]


def test_it_goes_on_trying_where_there_is_no_other() -> None:
    election = leading()
    assert election.handle(SchedulerFails(99, rivals=False), 0.5) == []
    assert election.leads(0.5)
    assert election.handle(SchedulerFails(100, rivals=True), 0.6) == [Drain((0, 17), 10.6)], "one came"


def test_a_drain_that_takes_too_long_is_cut() -> None:
    election = leading(Timing(ttl_seconds=30, priority=10, drain_seconds=3))
    election.handle(ResignAsked(), 1)
    assert election.wake_at == 4
    assert election.handle(Tick(), 4) == [StepDown((0, 17), 7, REASON_RESIGNED)]


def test_lower_priority_waits_longer_and_gives_way() -> None:
    election = following(Timing(ttl_seconds=5, priority=6, priority_step_seconds=0.25))
    election.handle(Tick(), 0)
    assert election.handle(LeaderRead(1, None), 0) == []
    assert (election.state, election.wake_at) == (State.WAITING, 1.0)
    assert election.handle(KeyChanged(), 0.5) == [ReadLeader(2)]
    assert election.handle(LeaderRead(2, OTHER), 0.5) == []
    assert (election.state, election.seen) == (State.FOLLOWING, OTHER)


def test_unknown_outcome_is_resolved_by_reading_the_nonce() -> None:
    election = following()
    election.handle(Tick(), 0)
    election.handle(LeaderRead(1, None), 0)
    assert election.handle(CampaignUnknown(2, 0, 42), 1) == [ReadLeader(3)]
    assert election.handle(LeaderRead(3, LeaderKey("me", "abc.2", (1, 20), 42)), 2) == [Lead((1, 20), 4)]


@pytest.mark.parametrize("found", [None, OTHER, LeaderKey("me", "abc.1", (0, 3), 41)])
def test_unknown_outcome_that_was_not_ours_is_revoked(found: LeaderKey | None) -> None:
    election = following()
    election.handle(Tick(), 0)
    election.handle(LeaderRead(1, None), 0)
    election.handle(CampaignUnknown(2, 0, 42), 1)
    assert election.handle(LeaderRead(3, found), 2) == [Revoke(4, 42)]
    assert election.state is State.FOLLOWING


def test_unknown_outcome_that_cannot_be_read_in_time_is_given_up() -> None:
    election = following()
    election.handle(Tick(), 0)
    election.handle(LeaderRead(1, None), 0)
    election.handle(CampaignUnknown(2, 0, 42), 1)
    assert election.handle(ReadFailed(3), 3.5) == []
    assert election.wake_at == 4
    assert election.handle(Tick(), 4) == [Revoke(4, 42)]


def test_an_election_won_too_late_is_no_leadership() -> None:
    election = following()
    election.handle(Tick(), 0)
    election.handle(LeaderRead(1, None), 0)
    assert election.handle(Elected(2, 0, 42, (0, 17)), 4.0) == [Revoke(3, 42)]
    assert not election.leads(4.0)


def test_an_own_key_from_a_campaign_given_up_is_let_go() -> None:
    election = following()
    election.handle(Tick(), 0)
    assert election.handle(LeaderRead(1, LeaderKey("me", "abc.0", (0, 3), 41)), 0) == [Revoke(2, 41)]


def test_a_lost_campaign_does_not_flood_the_store() -> None:
    election = following()
    election.handle(Tick(), 0)
    election.handle(LeaderRead(1, None), 0)
    assert election.handle(NotElected(2, 42), 0) == [Revoke(3, 42)]
    assert election.wake_at == 0.5


# --- simulation -----------------------------------------------------------------------------------------------


@dataclass
class Lease:
    expires_at: float


@dataclass
class SimulatedStore:
    """Executes calls at once, atomically; leases end exactly a ttl after the last call that renewed them."""

    ttl: float
    leases: dict[int, Lease] = field(default_factory=dict)
    key: LeaderKey | None = None
    revision: int = 0
    up: bool = True

    def expire(self, now: float) -> None:
        for lease_id, lease in list(self.leases.items()):
            if lease.expires_at <= now:
                self.revoke(lease_id)

    def grant(self, now: float) -> int:
        self.revision += 1
        self.leases[self.revision] = Lease(now + self.ttl)
        return self.revision

    def create(self, lease_id: int, node: str, nonce: str) -> LeaderKey | None:
        if self.key is not None or lease_id not in self.leases:
            return None
        self.revision += 1
        self.key = LeaderKey(node, nonce, (0, self.revision), lease_id)
        return self.key

    def keepalive(self, lease_id: int, now: float) -> bool:
        if lease_id not in self.leases:
            return False
        self.leases[lease_id].expires_at = now + self.ttl
        return True

    def revoke(self, lease_id: int) -> None:
        self.leases.pop(lease_id, None)
        if self.key is not None and self.key.lease_id == lease_id:
            self.key = None


class Simulation:
    """Candidates and a store on one true time line; everything between them may be late, lost or paused."""

    CALL_TIMEOUT = 1.7

    def __init__(self, seed: int, candidates: int, ttl: float = 5) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.now = 0.0
        self.chaos = True
        self.store = SimulatedStore(ttl)
        self._order = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self.elections = [
            Election(Timing(ttl, self.rng.randint(1, 10)), f"node{i}-{seed}") for i in range(candidates)
        ]
        self.paused_until = [0.0] * candidates
        self.epochs: list[tuple[int, int]] = []
        self.ticks_at = [-1.0] * candidates
        for i in range(candidates):
            self.at(self.rng.random() * 3, lambda i=i: self.tick(i))

    def at(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), call))

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, call = heapq.heappop(self._queue)
            self.store.expire(self.now)
            self.check()
            call()
            self.check()
        self.now = until
        self.store.expire(self.now)
        self.check()

    def check(self) -> None:
        """The law, at every moment: who may act holds the key, and so there is one of them at most."""
        acting = [e for e in self.elections if e.leads(self.now)]
        assert len(acting) <= 1, f"two leaders at {self.now} with seed {self.seed}"
        for election in acting:
            assert self.store.key is not None and self.store.key.epoch == election.epoch, f"seed {self.seed}"

    def tick(self, i: int) -> None:
        self.deliver(i, Tick())

    def deliver(self, i: int, event: Event) -> None:
        """Give an event to a candidate, or keep it until the candidate's process runs again."""
        if self.paused_until[i] > self.now:
            self.at(self.paused_until[i] - self.now, lambda: self.deliver(i, event))
            return
        election = self.elections[i]
        expired = election.state in (State.LEADING, State.RESIGNING) and self.now >= election.deadline
        actions = election.handle(event, self.now)
        if expired:
            assert isinstance(actions[0], StepDown), f"seed {self.seed}"
        for action in actions:
            self.carry_out(i, action)
        wake_at = max(election.wake_at, self.now + 0.01)
        if wake_at < float("inf") and not (self.now < self.ticks_at[i] <= wake_at):
            self.ticks_at[i] = wake_at
            self.at(wake_at - self.now, lambda: self.tick(i))

    def carry_out(self, i: int, action: Action) -> None:
        sent_at = self.now
        match action:
            case ReadLeader(request):
                self.call(i, lambda: LeaderRead(request, self.store.key), lambda: ReadFailed(request))
            case Campaign(request, nonce):
                self.campaign(i, request, nonce, sent_at)
            case Renew(request, lease_id, create_revision):
                self.call(
                    i,
                    lambda: self.renew(request, lease_id, create_revision, sent_at),
                    lambda: RenewalFailed(request),
                )
            case Revoke(request, lease_id):

                def revoke() -> Event:
                    self.store.revoke(lease_id)
                    return RevokeEnded(request)

                self.call(i, revoke, lambda: RevokeEnded(request))
            case Lead(epoch):
                self.epochs.append(epoch)
            case Drain() | StepDown():
                self.at(self.rng.random() * 2, lambda: self.deliver(i, SchedulerStopped()))

    def renew(self, request: int, lease_id: int, create_revision: int, sent_at: float) -> Event:
        alive = self.store.keepalive(lease_id, self.now)
        if not alive or self.store.key is None or self.store.key.epoch[1] != create_revision:
            return KeyLost(request)
        return Renewed(request, sent_at)

    def campaign(self, i: int, request: int, nonce: str, sent_at: float) -> None:
        def create(lease_id: int) -> Event:
            key = self.store.create(lease_id, str(i), nonce)
            if key is None:
                return NotElected(request, lease_id)
            return Elected(request, sent_at, lease_id, key.epoch)

        def granted(lease_id: int) -> None:
            if self.paused_until[i] > self.now:
                self.at(self.paused_until[i] - self.now, lambda: granted(lease_id))
                return
            self.call(i, lambda: create(lease_id), lambda: CampaignUnknown(request, sent_at, lease_id))

        def grant() -> None:
            if not self.store.up or (self.chaos and self.rng.random() < 0.1):
                self.deliver(i, NotElected(request))
            else:
                lease_id = self.store.grant(self.now)
                self.at(self.delay(), lambda: granted(lease_id))

        self.at(self.delay(), grant)

    def delay(self) -> float:
        return self.rng.choice([0.001, 0.05, 0.5, 3.0]) * self.rng.random() if self.chaos else 0.005

    def call(self, i: int, execute: Callable[[], Event], failed: Callable[[], Event]) -> None:
        """A call to the store. It, or its answer, may be lost; and it may be carried out after it was given up."""
        there, back = self.delay(), self.delay()
        lost_there = not self.store.up or (self.chaos and self.rng.random() < 0.1)
        lost_back = self.chaos and self.rng.random() < 0.1
        answered = not lost_there and not lost_back and there + back < self.CALL_TIMEOUT

        def arrive() -> None:
            event = execute()
            if answered:
                self.at(back, lambda: self.deliver(i, event))

        if not lost_there:
            self.at(there, arrive)
        if not answered:
            self.at(self.CALL_TIMEOUT, lambda: self.deliver(i, failed()))

    def disturb(self) -> None:
        """One random fault, and the next one later."""
        if not self.chaos:
            return
        i = self.rng.randrange(len(self.elections))
        match self.rng.randrange(4):
            case 0:
                self.paused_until[i] = self.now + self.rng.choice([0.5, 3, 4.5, 6, 20])
            case 1:
                self.store.up = not self.store.up
            case 2:
                self.deliver(i, ResignAsked())
            case 3:
                self.deliver(i, KeyChanged())
        self.at(self.rng.random() * 8, self.disturb)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), candidates=st.integers(1, 5))
def test_never_two_leaders_and_always_one_again(seed: int, candidates: int) -> None:
    world = Simulation(seed, candidates)
    world.at(1, world.disturb)
    world.run(200)
    world.chaos, world.store.up = False, True
    world.run(260)
    assert sum(e.leads(world.now) for e in world.elections) == 1, f"nobody leads, seed {seed}"
    assert world.epochs == sorted(set(world.epochs)), "epochs only grow"


def test_with_a_healthy_store_the_highest_priority_leads_and_stays() -> None:
    world = Simulation(1, 3)
    world.chaos = False
    for election, priority in zip(world.elections, (3, 9, 5), strict=True):
        election.timing = Timing(5, priority)
    world._queue.clear()
    for i in range(3):
        world.at(0, lambda i=i: world.tick(i))
    world.run(120)
    assert [e.leads(world.now) for e in world.elections] == [False, True, False]
    assert len(world.epochs) == 1
