"""One entry of each section of pools.yml, as pydantic models: the spelling, and nothing that needs a second entry.

What an entry may not hold is refused here; what holds between entries is in pools_check, what holds against real
nodes in pools_fit. Amounts come out as integers in the kind's unit.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from ipaddress import ip_address, ip_interface
from signal import Signals
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from lavalite.base.errors import InputError
from lavalite.model import amounts
from lavalite.model.exits import parse_exit
from lavalite.model.host import VmAsk
from lavalite.model.job import MAX_BACKOFF_SECONDS, Factor, Name, Retries
from lavalite.model.resources import CPU, GPU, KINDS, MEMORY, NETWORK, STORAGE, WHOLE, special_fault
from lavalite.model.selector import Selector
from lavalite.model.specs import HALF_LIFE_SECONDS, TASKS, Fairshare, Limits, Preemption

MAX_COUNT = 10_000
CONSERVATIVE_DEPTH = 10
"""Of so many that wait the starts are planned where a queue is conservative and does not say."""
MAX_GRACE_SECONDS = 86400
PREEMPTION_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGUSR1", "SIGUSR2")
"""What a task may be sent first that is preempted: KILL follows after the grace."""


class Entry(BaseModel):
    """Strict: a boolean is no number, a number no text, and an unknown key is a fault."""

    model_config = ConfigDict(strict=True, extra="forbid", populate_by_name=False, arbitrary_types_allowed=True)


def reads(parse: Callable[[Any], Any]) -> BeforeValidator:
    """Let `parse` read a value; its InputError becomes pydantic's, with code and hint kept."""

    def read(value: Any) -> Any:
        try:
            return parse(value)
        except InputError as error:
            raise custom(error.code, error.fault.message, error.fault.hint) from error

    return BeforeValidator(read)


def custom(code: str, message: str, hint: str = "") -> PydanticCustomError:
    """A fault of ours inside a pydantic validator."""
    return PydanticCustomError("lavalite", "{message}", {"code": code, "message": message, "hint": hint})


def _share_or_bytes(value: Any) -> Far:
    if isinstance(value, str) and value.strip().endswith("%"):
        return Far(per_mille=amounts.parse_share(value))
    return Far(amount_bytes=amounts.parse_bytes(value))


class Far(Entry):
    """How much of a kind may be far: a share of it, or an amount."""

    per_mille: int | None = None
    amount_bytes: int = 0

    def of(self, amount: int) -> int:
        return self.amount_bytes if self.per_mille is None else amount * self.per_mille // 1000


Cpu = Annotated[int, reads(amounts.parse_cpu)]
Gpu = Annotated[int, reads(amounts.parse_gpu)]
Bytes = Annotated[int, reads(amounts.parse_bytes)]
Bandwidth = Annotated[int, reads(amounts.parse_bandwidth)]
Seconds = Annotated[int, reads(amounts.parse_duration)]
Count = Annotated[int, reads(amounts.parse_count)]
AskedGpu = Annotated[int, reads(amounts.asked(amounts.parse_gpu))]
AskedBytes = Annotated[int, reads(amounts.asked(amounts.parse_bytes))]
AskedBandwidth = Annotated[int, reads(amounts.asked(amounts.parse_bandwidth))]
"""What a logical host asks for. Of its CPU, which it must have, pools_check says more."""
FarAmount = Annotated[Far, reads(_share_or_bytes)]
Nodes = Annotated[Selector, reads(Selector.parse)]
ExitCode = Annotated[int, reads(parse_exit)]


def _kind(value: Any) -> str:
    """One of the five, or the name of a special kind; what is nearly one of the five is that misspelled."""
    close = get_close_matches(value, KINDS, n=1, cutoff=0.75) if isinstance(value, str) else list(KINDS)
    if value not in KINDS and close:
        hint = f"Did you mean {close[0]}?" if len(close) == 1 else f"Write {' or '.join(close)}."
        raise custom("unknown_value", f"{str(value)[:60]} is not known here", hint)
    return str(value) if value in KINDS else _special(value)


def _special(value: Any) -> str:
    if not isinstance(value, str) or (fault := special_fault(value)):
        fault = fault if isinstance(value, str) else f"{str(value)[:60]} is no name of a kind"
        raise custom("bad_name", fault, "Write fpga, or whatever nodes call it in lim_special.")
    return value


Kind = Annotated[str, BeforeValidator(_kind)]
Special = Annotated[str, BeforeValidator(_special)]


def _spelled_short(field: str) -> Any:
    """A validator that reads `gpu: 4` as `gpu: {count: 4}`."""

    def spread(value: Any) -> Any:
        return value if isinstance(value, dict) else {field: value}

    return model_validator(mode="before")(spread)


class GpuAsk(Entry):
    count: AskedGpu
    model: str = ""
    memory: AskedBytes = 0
    pool: str = ""
    topology: Literal["", "nvlink", "pcie", "numa"] = ""
    _short = _spelled_short("count")

    @model_validator(mode="after")
    def _whole(self) -> GpuAsk:
        if self.count > 1000 and self.count % 1000:
            more = amounts.format_gpu(self.count - self.count % 1000 + 1000)
            raise custom("out_of_range", "more than one GPU is counted whole", f"Write {more}.")
        return self


class StorageAsk(Entry):
    """All of it is of one node. `circuit` is reserved to it where that is not the host's own."""

    size: AskedBytes
    iops: Count = 0
    pool: str = ""
    circuit: AskedBandwidth | None = None
    _short = _spelled_short("size")


class SpecialAsk(Entry):
    """Whole devices of a kind that the operator named."""

    count: Annotated[int, reads(amounts.asked(amounts.parse_count))]
    model: str = ""
    pool: str = ""
    _short = _spelled_short("count")


class NetworkAsk(Entry):
    bandwidth: AskedBandwidth
    pool: str = ""
    _short = _spelled_short("bandwidth")


class FarAsk(Entry):
    """How much may come from other nodes where the host's own has too little, devices whole; `circuit` is reserved to
    each node that something of it comes from.
    """

    memory: FarAmount | None = None
    gpu: AskedGpu | None = None
    special: dict[Special, Annotated[int, reads(amounts.asked(amounts.parse_count))]] = {}
    circuit: AskedBandwidth | None = None

    @model_validator(mode="after")
    def _of_something(self) -> FarAsk:
        if self.gpu is not None and self.gpu % WHOLE:
            more = amounts.format_gpu(self.gpu - self.gpu % WHOLE + WHOLE)
            raise custom("out_of_range", "a GPU of another node is had whole", f"Write gpu: {more}.")
        if self.circuit is not None and self.memory is None and self.gpu is None and not self.special:
            raise custom("missing", "a circuit to nothing", "Write memory or gpu: what may be far.")
        return self


def _address(value: Any) -> str:
    """An address with its network, as 10.0.0.7/24."""
    try:
        if not isinstance(value, str) or "/" not in value:
            raise ValueError
        return str(ip_interface(value))
    except ValueError:
        text = value[:60] if isinstance(value, str) and value else "this"
        raise custom("bad_address", f"{text} is no address with its network", "Write 10.0.0.7/24.") from None


def _gateway(value: Any) -> str:
    try:
        if not isinstance(value, str):
            raise ValueError
        return str(ip_address(value))
    except ValueError:
        text = value[:60] if isinstance(value, str) and value else "this"
        raise custom("bad_address", f"{text} is no address", "Write 10.0.0.1.") from None


def _key(value: Any) -> str:
    if not isinstance(value, str) or "\n" in value.strip() or len(value.split()) < 2:
        raise custom("bad_key", "this is no public SSH key", "Write it in one line: ssh-ed25519 AAAA… name.")
    return value.strip()


Address = Annotated[str, BeforeValidator(_address)]


class VmEntry(Entry):
    """`logical_hosts.NAME.vm`: what a host that is a virtual machine starts from.

    `address` is its own, in CIDR form; `addresses` are those of the hosts of an entry with `count`, one for each.
    Those whose keys are `ssh_keys` may log in as root.
    """

    image: Annotated[str, Field(min_length=1, max_length=1024)]
    address: Address = ""
    addresses: list[Address] = []
    gateway: Annotated[str, BeforeValidator(_gateway)] = ""
    ssh_keys: list[Annotated[str, BeforeValidator(_key)]] = []

    def ask(self, at: int) -> VmAsk:
        """That of the host with this number, from 0."""
        address = self.addresses[at] if at < len(self.addresses) else self.address
        return VmAsk(image=self.image, address=address, gateway=self.gateway, ssh_keys=list(self.ssh_keys))


class HostLimits(Entry):
    cpu: Cpu | None = None
    memory: Bytes | None = None
    gpu: Gpu | None = None
    storage: Bytes | None = None
    network: Bandwidth | None = None

    def amounts(self) -> dict[str, int]:
        return {kind: amount for kind in KINDS if (amount := getattr(self, kind)) is not None}


class HostEntry(Entry):
    """`logical_hosts.NAME`. `pools` names the pool of a kind that has no place of its own for it.

    `near` is within what all its parts are: one node, one rack (the label `rack`), or any. `strategy` is where they
    go: near (as little as can be from other nodes, and that from near ones), binpack (the fullest nodes first) or
    spread (the emptiest first). `executor`: bare, on its node as that is, or vm, which then says what it starts from.
    `on_loss`: whether it fails with a part that is lost, or goes on without it (degrade).
    """

    cpu: Cpu
    memory: AskedBytes = 0
    gpu: GpuAsk | None = None
    storage: StorageAsk | None = None
    network: NetworkAsk | None = None
    special: dict[Special, SpecialAsk] = {}
    pools: dict[Kind, str] = {}
    far: FarAsk = FarAsk()
    near: Literal["node", "rack", "any"] = "any"
    strategy: Literal["near", "binpack", "spread"] = "near"
    executor: Literal["bare", "vm"] = "bare"
    vm: VmEntry | None = None
    on_loss: Literal["fail", "degrade"] = "fail"
    limits: HostLimits = HostLimits()
    count: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None

    def amounts(self) -> dict[str, int]:
        """What each host of the entry asks for, zeros left out."""
        asked = {
            CPU: self.cpu,
            MEMORY: self.memory,
            GPU: self.gpu.count if self.gpu else 0,
            STORAGE: self.storage.size if self.storage else 0,
            NETWORK: self.network.bandwidth if self.network else 0,
            **{kind: ask.count for kind, ask in self.special.items()},
        }
        return {kind: amount for kind, amount in asked.items() if amount}

    def far_amounts(self) -> dict[str, int]:
        """How much of each kind may come from other nodes, beside storage, of which all may; zeros left out."""
        memory = self.far.memory.of(self.memory) if self.far.memory else 0
        far = {MEMORY: memory, GPU: self.far.gpu or 0} | self.far.special
        return {kind: amount for kind, amount in far.items() if amount}

    def circuits(self) -> dict[str, int]:
        """Bits a second of the circuit to what of a kind is far, where that is said."""
        said = {kind: self.far.circuit for kind in (MEMORY, GPU) if getattr(self.far, kind) is not None}
        said |= dict.fromkeys(self.far.special, self.far.circuit)
        said |= {STORAGE: self.storage.circuit} if self.storage else {}
        return {kind: bandwidth for kind, bandwidth in said.items() if bandwidth is not None}

    def named_pools(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Pool by kind, with the path below the entry where it is named."""
        named: dict[str, tuple[str, tuple[str, ...]]] = {
            kind: (pool, ("pools", kind)) for kind, pool in self.pools.items()
        }
        for kind, ask in ((GPU, self.gpu), (STORAGE, self.storage), (NETWORK, self.network)):
            if ask is not None and ask.pool:
                named[kind] = (ask.pool, (kind, "pool"))
        special = {k: (ask.pool, ("special", k, "pool")) for k, ask in self.special.items() if ask.pool}
        return named | special

    def model_of(self, kind: str) -> str:
        """The model that its devices of a kind must be of."""
        if kind == GPU:
            return self.gpu.model if self.gpu else ""
        return self.special[kind].model if kind in self.special else ""

    def expanded(self, entry: str) -> list[str]:
        """The names of its hosts: its own, or with `count` numbered from 1."""
        return [entry] if self.count is None else [f"{entry}-{n}" for n in range(1, self.count + 1)]


class LimitAmounts(Entry):
    """The most that may be held at a time, by kind; `special` and `floating` by name."""

    tasks: Annotated[int, Field(ge=0)] | None = None
    cpu: Cpu | None = None
    memory: Bytes | None = None
    gpu: Gpu | None = None
    storage: Bytes | None = None
    network: Bandwidth | None = None
    special: dict[Special, Count] = {}
    floating: dict[Name, Count] = {}

    def amounts(self) -> dict[str, int]:
        """By kind, those that are limited."""
        typed = {kind: getattr(self, kind) for kind in (TASKS, *KINDS)}
        return {kind: amount for kind, amount in typed.items() if amount is not None} | self.special | self.floating


class HolderLimits(LimitAmounts):
    """All told, by each user and group, and by some in particular; `tasks_per_user` is per_user: {tasks: …}."""

    tasks_per_user: Annotated[int, Field(ge=1)] | None = None
    per_user: LimitAmounts = LimitAmounts()
    per_group: LimitAmounts = LimitAmounts()
    users: dict[Name, LimitAmounts] = {}
    groups: dict[Name, LimitAmounts] = {}

    def spelled(self) -> list[tuple[tuple[str, ...], LimitAmounts]]:
        """Each set of amounts with the path below `limits` where it is written."""
        named = [(("users", name), found) for name, found in self.users.items()]
        named += [(("groups", name), found) for name, found in self.groups.items()]
        return [((), self), (("per_user",), self.per_user), (("per_group",), self.per_group), *named]

    def limits(self) -> Limits:
        """But for `tasks_per_user`."""
        return Limits(
            whole=self.amounts(),
            per_user=self.per_user.amounts(),
            per_group=self.per_group.amounts(),
            users={name: found.amounts() for name, found in self.users.items()},
            groups={name: found.amounts() for name, found in self.groups.items()},
        )


class QuotaEntry(Entry):
    """Amounts as typed: one, where the pool has one kind, or a mapping by kind. Read once the kinds are known."""

    nominal: Any
    borrow: Any = None
    lend: Any = None


class PoolEntry(Entry):
    nodes: Nodes | None = None
    kinds: list[Kind] = []
    default: bool = False
    floating: dict[Name, Count] = {}
    quota: dict[Name, QuotaEntry] = {}
    cohort: str = ""
    limits: HolderLimits = HolderLimits()

    @model_validator(mode="after")
    def _whole(self) -> PoolEntry:
        if self.nodes is None and not self.floating:
            raise custom("missing", "a pool of nothing", "Write nodes and kinds, or floating.")
        if self.nodes is not None and not self.kinds:
            raise custom("missing", "kinds are missing", "Write kinds: [cpu, memory], or what it is for.")
        if self.nodes is None and (self.kinds or self.default):
            raise custom("missing", "nodes are missing", "Write nodes: {group: lavalite_nodes}.")
        if len(set(self.kinds)) != len(self.kinds):
            raise custom("duplicate", "a kind stands twice in kinds", "Keep it once.")
        return self


class QueueLimits(HolderLimits):
    walltime: Seconds | None = None


ShareCount = Annotated[int, Field(ge=1, le=1_000_000)]


class FairshareEntry(Entry):
    """Shares of groups, and of users within their group; 1 for those that are not named."""

    half_life: Seconds = HALF_LIFE_SECONDS
    groups: dict[Name, ShareCount] = {}
    users: dict[Name, ShareCount] = {}

    def spec(self) -> Fairshare:
        return Fairshare(self.half_life, dict(self.groups), dict(self.users))


class BackoffEntry(Entry):
    """`first`, then each time `factor` times as long, but never more than `most`."""

    first: Seconds | None = None
    factor: Factor | None = None
    most: Seconds | None = None

    @model_validator(mode="after")
    def _ordered(self) -> BackoffEntry:
        for name in ("first", "most"):
            seconds = getattr(self, name)
            if seconds is not None and not 1 <= seconds <= MAX_BACKOFF_SECONDS:
                raise custom("out_of_range", f"{name} is {amounts.format_duration(seconds)}", "Write from 1s to 30d.")
        if self.first is not None and self.most is not None and self.first > self.most:
            raise custom("out_of_range", "first is more than most", "Lower first, or raise most.")
        return self


class BackfillEntry(Entry):
    """Of whom starts are planned: of the first that has no room (easy), of so many (conservative), or of nobody."""

    mode: Literal["easy", "conservative", "none"]
    depth: Annotated[int, Field(ge=1, le=100)] | None = None
    _short = _spelled_short("mode")

    @model_validator(mode="after")
    def _depth_is_conservative(self) -> BackfillEntry:
        if self.depth is not None and self.mode != "conservative":
            raise custom(
                "unknown_key", f"{self.mode} backfill has no depth", "Write mode: conservative, or no depth."
            )
        return self

    def planned_starts(self) -> int:
        if self.mode == "conservative":
            return CONSERVATIVE_DEPTH if self.depth is None else self.depth
        return 1 if self.mode == "easy" else 0


class PreemptionEntry(Entry):
    """How the queue's jobs take room from tasks of queues of lower priority; which those may be: pools_check."""

    mode: Literal["none", "cancel", "requeue", "suspend"]
    queues: list[Name] = []
    below: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    grace: Seconds | None = None
    signal: str = "SIGTERM"
    _short = _spelled_short("mode")

    @model_validator(mode="after")
    def _good(self) -> PreemptionEntry:
        if self.mode == "none" and self.model_fields_set - {"mode"}:
            raise custom("unknown_key", "nobody is preempted, and yet it says how", "Write mode: requeue or cancel.")
        if self.mode == "suspend" and {"grace", "signal"} & self.model_fields_set:
            message = "what is suspended does not end, and has neither grace nor signal"
            raise custom("unknown_key", message, "Leave them out, or write mode: requeue.")
        if self.signal not in PREEMPTION_SIGNALS:
            hint = f"Write one of {', '.join(PREEMPTION_SIGNALS)}."
            raise custom("unknown_signal", f"{self.signal} is no signal that asks to end", hint)
        if self.grace is not None and not 1 <= self.grace <= MAX_GRACE_SECONDS:
            message = f"grace is {amounts.format_duration(self.grace)}"
            raise custom("out_of_range", message, "Write from 1s to 1d.")
        return self

    def spec(self) -> Preemption | None:
        if self.mode == "none":
            return None
        return Preemption(self.mode, tuple(self.queues), self.below, self.grace, int(Signals[self.signal]))


class QueueEntry(Entry):
    """`fence_after` is when a silent node stops rerunnable work by itself, `lost_after` when it is given up.

    `retries`, `retry_on` and `backoff` are for jobs that do not say them.
    A keeper that was suspended stops its work some seconds late, so the one comes well after the other (pools_check).
    """

    priority: Annotated[int, Field(ge=0, le=1_000_000)] = 30
    policy: str = ""
    default: bool = False
    limits: QueueLimits = QueueLimits()
    fairshare: FairshareEntry | None = None
    backfill: BackfillEntry = BackfillEntry(mode="easy")
    preemption: PreemptionEntry = PreemptionEntry(mode="none")
    max_preemptions: Annotated[int, Field(ge=0, le=1000)] | None = None
    fence_after: Seconds | None = None
    lost_after: Seconds | None = None
    retries: Retries = 0
    retry_on: list[ExitCode] = []
    backoff: BackoffEntry = BackoffEntry()


class LinkEntry(Entry):
    """`from` is a mapping of labels (each such node) or the name of a switch."""

    source: Annotated[Selector | str, BeforeValidator(lambda value: _link_source(value))] = Field(alias="from")
    to: Name
    bandwidth: Bandwidth


def _link_source(value: Any) -> Any:
    if isinstance(value, dict):
        try:
            return Selector.parse(value)
        except InputError as error:
            raise custom(error.code, error.fault.message, error.fault.hint) from error
    return value


class CapacityGpu(Entry):
    count: Annotated[int, Field(ge=0, le=1024)]
    model: str = ""
    memory: Bytes = 0
    _short = _spelled_short("count")


class CapacitySpecial(Entry):
    count: Annotated[int, Field(ge=0, le=1024)]
    model: str = ""
    _short = _spelled_short("count")


class CapacityEntry(BaseModel):
    """`capacity.NODE`: amounts per kind; every other key is a label."""

    model_config = ConfigDict(strict=True, extra="allow")

    cpu: Cpu = 0
    memory: Bytes = 0
    gpu: CapacityGpu | None = None
    storage: Bytes = 0
    network: Bandwidth = 0
    special: dict[Special, CapacitySpecial] = {}

    @model_validator(mode="after")
    def _labels_are_text(self) -> CapacityEntry:
        for label, value in (self.model_extra or {}).items():
            items = value if isinstance(value, list) else [value]
            if any(isinstance(item, bool) or not isinstance(item, str | int) for item in items):
                raise custom("bad_label", f"label {label} is not text", f"Write {label}: x, or {label}: [x, y].")
        return self

    def labels(self) -> dict[str, list[str]]:
        return {
            label: [str(item) for item in (value if isinstance(value, list) else [value])]
            for label, value in (self.model_extra or {}).items()
        }


class Connection(Entry):
    """Where the API is, and how it is spoken to. `mode`: live fails loudly, plan is offline, auto is either."""

    plugin: Literal["lavalite.cluster.pools"] = "lavalite.cluster.pools"
    cluster: Name
    mode: Literal["live", "plan", "auto"] = "live"
    api: Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = []
    token_path: str = ""
    ca_path: str = ""
    unix_socket: str = ""
    timeout: Seconds = 10

    @model_validator(mode="after")
    def _urls(self) -> Connection:
        for url in self.api:
            if not url.startswith(("http://", "https://")) or " " in url:
                raise custom("bad_url", f"{url[:60]} is no address of the API", "Write https://ctl1:6880.")
        return self
