"""What the election of core.py takes in and gives out: events, actions, and the leader key as read.

Every action with a `request` is answered by exactly one event with the same number. Times are CLOCK_BOOTTIME seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

Epoch = tuple[int, int]
"""(generation, create revision of the leader key)."""


@dataclass(slots=True, frozen=True)
class LeaderKey:
    """The leader key as read. Addresses are `host:port`."""

    node: str
    nonce: str
    epoch: Epoch
    lease_id: int = 0
    lim_address: str = ""
    mbatchd_address: str = ""
    api_url: str = ""


# --- events ---------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Tick:
    """Time has passed."""


@dataclass(slots=True, frozen=True)
class KeyChanged:
    """Something happened to the leader key: worth a look now."""


@dataclass(slots=True, frozen=True)
class LeaderRead:
    request: int
    leader: LeaderKey | None


@dataclass(slots=True, frozen=True)
class ReadFailed:
    request: int


@dataclass(slots=True, frozen=True)
class Elected:
    """`sent_at`: just before the lease was asked for."""

    request: int
    sent_at: float
    lease_id: int
    epoch: Epoch


@dataclass(slots=True, frozen=True)
class NotElected:
    """The key is another's, or the store did nothing. `lease_id` 0: none was got."""

    request: int
    lease_id: int = 0


@dataclass(slots=True, frozen=True)
class CampaignUnknown:
    """The transaction that creates the key was sent, and no answer came."""

    request: int
    sent_at: float
    lease_id: int


@dataclass(slots=True, frozen=True)
class Renewed:
    """The lease was kept alive by a call sent at `sent_at`, and a later read found the key still ours."""

    request: int
    sent_at: float


@dataclass(slots=True, frozen=True)
class RenewalFailed:
    """No answer: we may still lead, until the deadline."""

    request: int


@dataclass(slots=True, frozen=True)
class KeyLost:
    """The lease is gone, or the key is not ours any more."""

    request: int


@dataclass(slots=True, frozen=True)
class SchedulerStopped:
    """What Drain or StepDown asked for is done: no scheduler of ours is alive."""


@dataclass(slots=True, frozen=True)
class RevokeEnded:
    """Done, or given up: the lease ends by itself then."""

    request: int


@dataclass(slots=True, frozen=True)
class ResignAsked:
    """`rivals`: whether another candidate seems to be there, who shall go first then."""

    rivals: bool = True


@dataclass(slots=True, frozen=True)
class SchedulerFails:
    """It ended early, and badly, for the `times`th time on end."""

    times: int
    rivals: bool


Event = (
    Tick | KeyChanged | LeaderRead | ReadFailed | Elected | NotElected | CampaignUnknown | Renewed | RenewalFailed
    | KeyLost | SchedulerStopped | RevokeEnded | ResignAsked | SchedulerFails
)  # fmt: skip


# --- actions --------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class ReadLeader:
    """Read the leader key; answered by LeaderRead or ReadFailed."""

    request: int


@dataclass(slots=True, frozen=True)
class Campaign:
    """Get a lease and create the key, holding `nonce`, under it if absent.

    Answered by Elected, NotElected or CampaignUnknown.
    """

    request: int
    nonce: str


@dataclass(slots=True, frozen=True)
class Renew:
    """Keep alive, then compare; answered by Renewed, RenewalFailed or KeyLost."""

    request: int
    lease_id: int
    create_revision: int


@dataclass(slots=True, frozen=True)
class Revoke:
    """Answered by RevokeEnded."""

    request: int
    lease_id: int


@dataclass(slots=True, frozen=True)
class Lead:
    """Write the lock file, start the scheduler."""

    epoch: Epoch
    deadline: float


@dataclass(slots=True, frozen=True)
class Extend:
    """Tell the scheduler the new deadline."""

    epoch: Epoch
    deadline: float


@dataclass(slots=True, frozen=True)
class Drain:
    """Ask the scheduler to finish what it began and end; renewals go on meanwhile. Answered by SchedulerStopped."""

    epoch: Epoch
    until: float


@dataclass(slots=True, frozen=True)
class StepDown:
    """Remove the lock, tell the scheduler to end, kill it at `kill_at`. Answered by SchedulerStopped."""

    epoch: Epoch
    kill_at: float
    reason: str


Action = ReadLeader | Campaign | Renew | Revoke | Lead | Extend | Drain | StepDown
