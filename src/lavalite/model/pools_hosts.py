"""`logical_hosts.NAME` of pools.yml: what is asked for, of where, how far away, and how it is run."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lavalite.model import amounts
from lavalite.model.host import VmAsk
from lavalite.model.pools_spelling import (
    AskedBandwidth,
    AskedBytes,
    AskedGpu,
    Bandwidth,
    Bytes,
    Count,
    Cpu,
    Entry,
    Gpu,
    Kind,
    Special,
    custom,
    reads,
    spelled_short,
)
from lavalite.model.resources import CPU, GPU, KINDS, MEMORY, NETWORK, STORAGE, WHOLE

MAX_COUNT = 10_000


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


FarAmount = Annotated[Far, reads(_share_or_bytes)]


class GpuAsk(Entry):
    count: AskedGpu
    model: str = ""
    memory: AskedBytes = 0
    pool: str = ""
    topology: Literal["", "nvlink", "pcie", "numa"] = ""
    _short = spelled_short("count")

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
    _short = spelled_short("size")


class SpecialAsk(Entry):
    """Whole devices of a kind that the operator named."""

    count: Annotated[int, reads(amounts.asked(amounts.parse_count))]
    model: str = ""
    pool: str = ""
    _short = spelled_short("count")


class NetworkAsk(Entry):
    bandwidth: AskedBandwidth
    pool: str = ""
    _short = spelled_short("bandwidth")


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
