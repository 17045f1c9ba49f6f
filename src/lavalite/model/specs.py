"""What pools.yml means once it is read: hosts one by one, pools, queues, links; and nodes as planning sees them.

Amounts are integers per kind, in the kind's unit (model.resources). All are plain values, held by the thousand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from signal import SIGTERM

from lavalite.model.amounts import format_amount
from lavalite.model.host import BARE, FAIL, VmAsk
from lavalite.model.resources import CPU, GPU, KINDS, Device, NodeOffer, is_special
from lavalite.model.selector import Selector

BUILT_IN_POLICIES = ("first-fit", "best-fit", "round-robin", "binpack", "spread", "gpu-packing", "fgd")
"""The names a queue or a request may always write; placement has a policy of each. Others are registered."""
DEFAULT_POLICY = "best-fit"
DEFAULT_QUEUE = "normal"
FENCE_AFTER_SECONDS = 15 * 60
LOST_AFTER_SECONDS = 16 * 60
STRATEGIES = ("near", "binpack", "spread")
"""How a logical host is placed: its parts close together, on the fullest nodes, or on the emptiest."""
CIRCUIT_BITS_PER_SECOND = 1_000_000_000
"""Of a circuit of which nobody says more."""


@dataclass(slots=True, frozen=True)
class HostSpec:
    """One logical host as it is asked for. `entry` is the name it has in pools.yml (`trainer` of `trainer-1`).

    `far` is how much of a kind may come from another node, `limits` how far the application inside may grow a kind.
    `pools` names the pool of each kind that has one, `special_models` the model of special kinds. `circuits` is the
    bandwidth that is reserved to what of a kind comes from another node, in bits a second (CIRCUIT_BITS_PER_SECOND
    where it is not said).
    """

    name: str
    amounts: dict[str, int]
    entry: str = ""
    gpu_model: str = ""
    gpu_memory_bytes: int = 0
    special_models: dict[str, str] = field(default_factory=dict)
    storage_iops: int = 0
    pools: dict[str, str] = field(default_factory=dict)
    near: str = "any"
    far: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    topology: str = ""
    strategy: str = "near"
    circuits: dict[str, int] = field(default_factory=dict)
    executor: str = BARE
    vm: VmAsk | None = None
    on_loss: str = FAIL

    def model_of(self, kind: str) -> str:
        """The model that its devices of a kind must be of; empty for any."""
        return self.gpu_model if kind == GPU else self.special_models.get(kind, "")

    def asked(self) -> str:
        """`4 A100, 16 cpu, 128GiB memory, pool gpus`: for people."""
        words = [format_kind(kind, self.amounts[kind], self.model_of(kind)) for kind in sorted_kinds(self.amounts)]
        words += [f"pool {pool}" for pool in sorted(set(self.pools.values()))]
        return ", ".join(words)


@dataclass(slots=True, frozen=True)
class Quota:
    """What a tenant of a pool is sure of, may borrow beyond it, and lends at most; None is no limit."""

    nominal: int
    borrow: int | None = None
    lend: int | None = None


TASKS = "tasks"
"""Beside the kinds of resources, what may be limited."""


@dataclass(slots=True, frozen=True)
class Limits:
    """The most that may be held at a time, by kind or TASKS: all told, by each user or group, or by one of them.

    What is said of one user or group stands instead of what is said of each.
    """

    whole: dict[str, int] = field(default_factory=dict)
    per_user: dict[str, int] = field(default_factory=dict)
    per_group: dict[str, int] = field(default_factory=dict)
    users: dict[str, dict[str, int]] = field(default_factory=dict)
    groups: dict[str, dict[str, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.whole or self.per_user or self.per_group or self.users or self.groups)

    def of_user(self, user: str) -> dict[str, int]:
        return {**self.per_user, **self.users[user]} if user in self.users else self.per_user

    def of_group(self, group: str) -> dict[str, int]:
        return {**self.per_group, **self.groups[group]} if group in self.groups else self.per_group


HALF_LIFE_SECONDS = 7 * 86400


@dataclass(slots=True, frozen=True)
class Fairshare:
    """How a queue is shared: each group has its share, and in it each user; 1 where none is named."""

    half_life_seconds: int = HALF_LIFE_SECONDS
    groups: dict[str, int] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class PoolSpec:
    """A selection of nodes for some kinds, or `floating` amounts that belong to no node.

    `quota` is per tenant and kind.
    """

    name: str
    selector: Selector | None = None
    kinds: tuple[str, ...] = ()
    default: bool = False
    floating: dict[str, int] = field(default_factory=dict)
    quota: dict[str, dict[str, Quota]] = field(default_factory=dict)
    cohort: str = ""
    limits: Limits = Limits()

    def has(self, node: str, labels: Mapping[str, list[str]]) -> bool:
        """Whether the node is in the pool."""
        return self.selector is not None and self.selector.matches(node, labels)

    def may_have(self, node: str, labels: Mapping[str, list[str]]) -> bool:
        """As `has`, but a node whose groups are not known may be in any."""
        return self.selector is not None and self.selector.may_match(node, labels)


@dataclass(slots=True, frozen=True)
class Preemption:
    """How a queue's jobs take room from tasks of queues of lower priority: `mode` is cancel, requeue or suspend.

    `queues` are those that may be preempted, all of lower priority where none is named; `below`, only such of a
    priority lower than that. `signal` is sent first, and after `grace_seconds` (None: as usual) KILL.
    """

    mode: str
    queues: tuple[str, ...] = ()
    below: int | None = None
    grace_seconds: int | None = None
    signal: int = SIGTERM


@dataclass(slots=True, frozen=True)
class QueueSpec:
    """One queue. Higher `priority` goes first. None is no limit.

    Of so many jobs that have no room the start is planned; with 0 what fits starts, whoever waits before it.
    """

    name: str
    priority: int = 30
    policy: str = DEFAULT_POLICY
    default: bool = False
    walltime_seconds: int | None = None
    tasks_per_user: int | None = None
    fence_after_seconds: int = FENCE_AFTER_SECONDS
    lost_after_seconds: int = LOST_AFTER_SECONDS
    limits: Limits = Limits()
    """`tasks_per_user` stands beside it."""
    fairshare: Fairshare | None = None
    retries: int = 0
    retry_on: tuple[int, ...] = ()
    """Exit codes that are worth another try, signals negative; empty: every failure is."""
    backoff_first_seconds: int | None = None
    backoff_factor: int | None = None
    backoff_most_seconds: int | None = None
    planned_starts: int = 1
    preemption: Preemption | None = None
    max_preemptions: int | None = None
    """A task of the queue that has been preempted so often is not preempted again."""


@dataclass(slots=True, frozen=True)
class LinkSpec:
    """Bandwidth from each selected node, or from the switch named `switch`, to the switch `to`."""

    to: str
    bits_per_second: int
    selector: Selector | None = None
    switch: str = ""


@dataclass(slots=True, frozen=True)
class NodeCapacity:
    """A node as planning sees it. `devices` are those that are given out by name, per kind.

    `labels["group"]` are the node's groups; without that label they are not known.
    """

    name: str
    labels: dict[str, list[str]] = field(default_factory=dict)
    amounts: dict[str, int] = field(default_factory=dict)
    devices: dict[str, tuple[Device, ...]] = field(default_factory=dict)

    @classmethod
    def from_offer(cls, offer: NodeOffer, labels: Mapping[str, list[str]] | None = None) -> NodeCapacity:
        """What a node's LIM found; `labels`, where there are others than it tells."""
        kinds = offer.kinds()
        return cls(
            name=offer.node,
            labels={label: list(values) for label, values in (offer.labels if labels is None else labels).items()},
            amounts={kind: offer.amount(kind) for kind in kinds},
            devices={kind: _shared(tuple(found)) for kind in kinds if (found := offer.devices(kind))},
        )


def _shared(devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """Cores of machines of one make are alike, and kept once for all of them."""
    if any(device.attributes for device in devices):
        return devices
    return _kept_once(_Alike(devices))


class _Alike:
    """Devices, equal to others of the same fields."""

    __slots__ = ("_fields", "devices")

    def __init__(self, devices: tuple[Device, ...]) -> None:
        self.devices = devices
        self._fields = tuple((d.id, d.model, d.memory_bytes, d.numa_node, d.pci_address) for d in devices)

    def __hash__(self) -> int:
        return hash(self._fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Alike) and self._fields == other._fields


@lru_cache(maxsize=1024)
def _kept_once(alike: _Alike) -> tuple[Device, ...]:
    return alike.devices


def fits_model(device: Device, model: str, memory_bytes: int) -> bool:
    """Whether a GPU is of the model and has the memory asked for.

    A model matches as a word of the device's name, whatever the case: `A100` is `NVIDIA A100-SXM4-80GB`.
    """
    return device.memory_bytes >= memory_bytes and _is_model(device.model, model)


@lru_cache(maxsize=4096)
def _is_model(name: str, asked: str) -> bool:
    words = name.lower().replace("-", " ").replace("_", " ").split()
    return all(word in words for word in asked.lower().replace("-", " ").replace("_", " ").split())


def sorted_kinds(amounts: Mapping[str, int]) -> list[str]:
    """Kinds in the order people list them: gpu first, as the rarest, then ours, then floating ones."""
    order = {kind: at for at, kind in enumerate((GPU, CPU, *KINDS[1:2], *KINDS[3:]))}
    return sorted(amounts, key=lambda kind: (order.get(kind, len(order)), kind))


def format_kind(kind: str, amount: int, model: str = "") -> str:
    """`4 A100`, `1 fpga U250`, `16 cpu`, `128GiB memory`."""
    if kind == GPU and model:
        return f"{format_amount(GPU, amount)} {model}"
    return f"{format_amount(kind, amount, named=True)} {model if is_special(kind) else ''}".rstrip()
