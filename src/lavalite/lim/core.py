"""The election of one candidate, as a pure state machine: events and `now` in, actions out.

                 key absent          its turn          key is ours
    FOLLOWING ────────────► WAITING ─────────► CAMPAIGNING ─────────► LEADING ──── resigns ──────────► RESIGNING
     ▲  ▲  ▲                   │                │   │ answer lost      │                                  │
     │  │  └──── key seen ─────┘    not elected │   ▼                  │ own deadline, key lost           │ drained,
     │  │                                       │  RESOLVING ─────────►│ (key holds our nonce)            │ as LEADING
     │  └───────────── not ours ────────────────┴───┘                  ▼                                  ▼
     └────────────────── scheduler stopped, then lease revoked ────  STEPPING_DOWN ◄──────────────────────┘

The law: the deadline is counted from when the last good renewal was *sent*, less a margin, so it always lies before
the moment at which the store can give the key to another. Whoever wakes up behind its deadline steps down before
it does anything else, whatever good news the event brings. All times are CLOCK_BOOTTIME seconds.

It resigns when it is asked to, and when its scheduler cannot run while another candidate is there. After that it lets
the others go first for a while; where there are none, it comes back at once.

Every action with a `request` is answered by exactly one event with the same number; late answers are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from lavalite.lim.steps import (
    Action,
    Campaign,
    CampaignUnknown,
    Drain,
    Elected,
    Epoch,
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


class State(StrEnum):
    FOLLOWING = "following"
    WAITING = "waiting"
    CAMPAIGNING = "campaigning"
    RESOLVING = "resolving"
    LEADING = "leading"
    RESIGNING = "resigning"
    STEPPING_DOWN = "stepping_down"


@dataclass(slots=True, frozen=True)
class Timing:
    """Seconds. `priority` 1..10: who has a higher one campaigns earlier by `priority_step_seconds` each."""

    ttl_seconds: float = 5.0
    priority: int = 5
    priority_step_seconds: float = 0.1
    drain_seconds: float = 10.0

    @property
    def margin_seconds(self) -> float:
        """Between the own deadline and the earliest end of the lease: to kill the scheduler, and for clock drift."""
        return self.ttl_seconds / 5

    @property
    def interval_seconds(self) -> float:
        """Between renewals, and between looks at the leader key."""
        return self.ttl_seconds / 5

    @property
    def delay_seconds(self) -> float:
        return (10 - self.priority) * self.priority_step_seconds

    @property
    def cool_down_seconds(self) -> float:
        """How long one that resigned lets the others go first, if there are any."""
        return 3 * self.ttl_seconds


REASON_DEADLINE = "the lease could not be renewed in time"
REASON_KEY_LOST = "the leader key is not ours any more"
REASON_RESIGNED = "asked to resign"
REASON_CANNOT_RUN = "the scheduler cannot run here, and another candidate is there"
GIVE_UP_AFTER = 3
"""So many early ends of the scheduler, one after the other, and another candidate may try."""


class Election:
    """See the module's docstring. `incarnation` is unique to this process; nonces begin with it."""

    def __init__(self, timing: Timing, incarnation: str) -> None:
        self.timing = timing
        self.state = State.FOLLOWING
        self.seen: LeaderKey | None = None
        """The leader key as last read; on the leader itself too."""
        self.epoch: Epoch = (0, 0)
        self.deadline = -math.inf
        self._incarnation = incarnation
        self._requests = 0
        self._pending: int | None = None  # the request whose answer this state waits for
        self._lease_id = 0
        self._nonce = ""
        self._next_at = -math.inf  # when to read, renew or look again
        self._campaign_at = math.inf
        self._cool_until = -math.inf
        self._drain_until = math.inf
        self._gives_way = False
        self._why_resigned = REASON_RESIGNED

    def leads(self, now: float) -> bool:
        """Whether this process may act as the leader at this very moment."""
        return self.state in (State.LEADING, State.RESIGNING) and now < self.deadline

    @property
    def wake_at(self) -> float:
        """When the next Tick is due; infinity while an answer has to come first."""
        due = self._next_at if self._pending is None else math.inf
        match self.state:
            case State.LEADING:
                return min(due, self.deadline)
            case State.RESIGNING:
                return min(due, self.deadline, self._drain_until)
            case State.WAITING:
                return min(due, self._campaign_at) if self._pending is None else math.inf
            case State.RESOLVING:
                return min(due, self.deadline)
            case State.FOLLOWING:
                return due
            case _:
                return math.inf

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event. Returns what is to be done, in this order."""
        actions: list[Action] = []
        if self.state in (State.LEADING, State.RESIGNING) and now >= self.deadline:
            actions += self._step_down(now, REASON_DEADLINE)
        request = getattr(event, "request", None)
        if request is not None:
            if request != self._pending:
                return actions
            self._pending = None
        return actions + self._react(event, now)

    def _react(self, event: Event, now: float) -> list[Action]:
        match event:
            case Tick():
                return self._on_time(now)
            case KeyChanged():
                self._next_at = min(self._next_at, now)
                return self._on_time(now)
            case LeaderRead(leader=leader):
                return self._on_read(leader, now)
            case ReadFailed():
                return self._on_read_failed(now)
            case Elected():
                return self._on_elected(event.sent_at, event.lease_id, event.epoch, now)
            case NotElected(lease_id=lease_id):
                # Not at once: a store that answers and yet refuses to write must not be flooded.
                return self._follow(now + self.timing.interval_seconds / 2) + self._drop(lease_id)
            case CampaignUnknown():
                return self._on_unknown(event, now)
            case Renewed(sent_at=sent_at):
                return self._on_renewed(sent_at)
            case RenewalFailed():
                self._next_at = now + self.timing.interval_seconds / 2
                return []
            case KeyLost():
                return self._step_down(now, REASON_KEY_LOST)
            case SchedulerStopped():
                return self._on_stopped(now)
            case RevokeEnded():
                return self._on_revoked(now)
            case ResignAsked(rivals=rivals):
                return self._on_resign(now, rivals, REASON_RESIGNED)
            case SchedulerFails(times=times, rivals=rivals):
                if times < GIVE_UP_AFTER or not rivals:
                    return []
                return self._on_resign(now, rivals, REASON_CANNOT_RUN)

    # --- following and campaigning ---

    def _on_time(self, now: float) -> list[Action]:
        match self.state:
            case State.RESOLVING if now >= self.deadline:
                return self._drop(self._lease_id) + self._follow(now)
            case State.RESIGNING if now >= self._drain_until:
                return self._step_down(now, self._why_resigned)
            case State.STEPPING_DOWN | State.CAMPAIGNING:
                return []
        if self._pending is not None:
            return []
        match self.state:
            case State.WAITING if now >= self._campaign_at:
                return self._campaign()
            case State.FOLLOWING | State.WAITING | State.RESOLVING if now >= self._next_at:
                return [ReadLeader(self._ask())]
            case State.LEADING | State.RESIGNING if now >= self._next_at:
                return [Renew(self._ask(), self._lease_id, self.epoch[1])]
        return []

    def _campaign(self) -> list[Action]:
        self.state = State.CAMPAIGNING
        request = self._ask()
        self._nonce = f"{self._incarnation}.{request}"
        return [Campaign(request, self._nonce)]

    def _on_read(self, leader: LeaderKey | None, now: float) -> list[Action]:
        self.seen = leader
        self._next_at = now + self.timing.interval_seconds
        if self.state is State.RESOLVING:
            if leader is not None and leader.nonce == self._nonce:
                return self._lead(leader.epoch, now)
            # The transaction may still be on its way: without its lease it can do nothing.
            return self._drop(self._lease_id) + self._follow(now)
        if leader is None:
            if self.state is State.FOLLOWING:
                self.state = State.WAITING
                self._campaign_at = max(now + self.timing.delay_seconds, self._cool_until)
            return self._on_time(now)
        self.state = State.FOLLOWING
        if leader.nonce.startswith(f"{self._incarnation}."):
            # A campaign that we had given up came through late. Nobody renews it: let it go.
            return self._drop(leader.lease_id)
        return []

    def _on_read_failed(self, now: float) -> list[Action]:
        self._next_at = now + self.timing.interval_seconds
        if self.state is State.WAITING:
            self.state = State.FOLLOWING
        return []

    def _on_unknown(self, event: CampaignUnknown, now: float) -> list[Action]:
        self.state = State.RESOLVING
        self._lease_id = event.lease_id
        self.deadline = event.sent_at + self.timing.ttl_seconds - self.timing.margin_seconds
        self._next_at = now
        return self._on_time(now)

    def _on_elected(self, sent_at: float, lease_id: int, epoch: Epoch, now: float) -> list[Action]:
        self._lease_id = lease_id
        self.deadline = sent_at + self.timing.ttl_seconds - self.timing.margin_seconds
        return self._lead(epoch, now)

    def _follow(self, look_at: float) -> list[Action]:
        self.state = State.FOLLOWING
        self._pending = None
        self._next_at = look_at
        return []

    # --- leading ---

    def _lead(self, epoch: Epoch, now: float) -> list[Action]:
        if now >= self.deadline:
            return self._follow(now) + self._drop(self._lease_id)
        self.state = State.LEADING
        self.epoch = epoch
        self._gives_way = False
        sent_at = self.deadline - self.timing.ttl_seconds + self.timing.margin_seconds
        self._next_at = sent_at + self.timing.interval_seconds
        return [Lead(epoch, self.deadline)]

    def _on_renewed(self, sent_at: float) -> list[Action]:
        self.deadline = max(self.deadline, sent_at + self.timing.ttl_seconds - self.timing.margin_seconds)
        self._next_at = sent_at + self.timing.interval_seconds
        return [Extend(self.epoch, self.deadline)]

    def _on_resign(self, now: float, rivals: bool, reason: str) -> list[Action]:
        if self.state is not State.LEADING:
            return []
        self.state = State.RESIGNING
        self._gives_way, self._why_resigned = rivals, reason
        self._drain_until = now + self.timing.drain_seconds
        return [Drain(self.epoch, self._drain_until)]

    def _step_down(self, now: float, reason: str) -> list[Action]:
        self.state = State.STEPPING_DOWN
        self._pending = None
        self.seen = None
        kill_at = min(now, self.deadline) + self.timing.margin_seconds / 2
        return [StepDown(self.epoch, kill_at, reason)]

    def _on_stopped(self, now: float) -> list[Action]:
        if self.state is State.RESIGNING:
            return self._step_down(now, self._why_resigned)
        if self.state is State.STEPPING_DOWN and self._pending is None:
            return [Revoke(self._ask(), self._lease_id)]
        return []

    def _on_revoked(self, now: float) -> list[Action]:
        if self.state is not State.STEPPING_DOWN:
            return []
        if self._gives_way:
            self._cool_until = now + self.timing.cool_down_seconds
        return self._follow(now)

    # --- requests ---

    def _ask(self) -> int:
        self._requests += 1
        self._pending = self._requests
        return self._requests

    def _drop(self, lease_id: int) -> list[Action]:
        """Revoke, and do not wait for the answer."""
        if lease_id == 0:
            return []
        self._requests += 1
        return [Revoke(self._requests, lease_id)]
