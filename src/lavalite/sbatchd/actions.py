"""What the core wants done. To be carried out in order; an urgent Write is durable before what follows it is begun.

A Write may be done sooner than in its turn: it tells what has happened, or is promised, by then.
"""

from __future__ import annotations

from dataclasses import dataclass

from lavalite.sbatchd.entry import Entry, Record
from lavalite.wire.frames import AnyFrame, Attempt, Console, HostAnswer, HostsHere, PartOrder, Read, Typed


@dataclass(slots=True, frozen=True)
class Write:
    """Append to the journal, durably. One that is not urgent may wait for the next, and be lost with a crash until
    then; nothing that follows stands on it."""

    records: tuple[Record, ...]
    urgent: bool = True


@dataclass(slots=True, frozen=True)
class Start:
    """Give to the executor. `contact`: when the last acknowledged beat was sent, CLOCK_BOOTTIME seconds."""

    attempt: Attempt
    stdout_path: str
    stderr_path: str
    contact: float


@dataclass(slots=True, frozen=True)
class Signal:
    id: str
    signal: int
    ending: bool
    grace_seconds: float
    reason: str


@dataclass(slots=True, frozen=True)
class Forget:
    """The executor need not remember its end any more."""

    id: str


@dataclass(slots=True, frozen=True)
class RenewContact:
    """Fences count from `sent`, CLOCK_BOOTTIME seconds."""

    sent: float


@dataclass(slots=True, frozen=True)
class Send:
    frame: AnyFrame


@dataclass(slots=True, frozen=True)
class Close:
    """End the session; another will be opened."""

    reason: str


@dataclass(slots=True, frozen=True)
class OpenStream:
    read: Read
    entry: Entry | None


@dataclass(slots=True, frozen=True)
class CloseStream:
    stream_id: int


@dataclass(slots=True, frozen=True)
class OpenConsole:
    ask: Console


@dataclass(slots=True, frozen=True)
class TypeIn:
    typed: Typed


@dataclass(slots=True, frozen=True)
class ApplyHosts:
    hosts: HostsHere


@dataclass(slots=True, frozen=True)
class PassOn:
    """The leader's answer, to who asked from inside a logical host."""

    answer: HostAnswer


@dataclass(slots=True, frozen=True)
class ApplyParts:
    """Have these, and have those no more. It takes its time, and is answered by itself."""

    orders: tuple[PartOrder, ...]


@dataclass(slots=True, frozen=True)
class ShowParts:
    """Tell a leader that is new what this node has for logical hosts."""


Action = (
    Write
    | Start
    | Signal
    | Forget
    | RenewContact
    | Send
    | Close
    | OpenStream
    | CloseStream
    | OpenConsole
    | TypeIn
    | ApplyHosts
    | ApplyParts
    | ShowParts
    | PassOn
)
