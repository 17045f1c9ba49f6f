"""What is ordered of a virtual machine, checked."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError, field_validator, model_validator

from lavalite.base.config import Config
from lavalite.base.errors import Fault, InputError
from lavalite.model.job import Name
from lavalite.wire.frames import PartOrder

MIB = 1024 * 1024
MEMORY_LEAST_BYTES = 128 * MIB
CPUS_MOST = 512
DISKS_MOST = 16
"""As many slots are there for disks that come and go."""
SERIAL_CHARACTERS = 20
"""Of a virtio disk."""
SERIAL_PREFIXES = ("disk-", "swap-")
_NAMES: TypeAdapter[str] = TypeAdapter(Name)

Text = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]
SshKey = Annotated[
    str,
    StringConstraints(max_length=16_384, pattern=r"^[a-z][a-z0-9@.-]+ [A-Za-z0-9+/]+={0,3}( [^\x00-\x1f\x7f]*)?$"),
]
PskHex = Annotated[str, StringConstraints(pattern=r"^([0-9a-fA-F]{2}){16,64}$|^$")]


class Disk(Config):
    """A disk of the guest. One without an address is a file of this node. `mirrors` is as in PartOrder."""

    part: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
    kind: Literal["storage", "memory"] = "storage"
    bytes: int = Field(gt=0, multiple_of=512)
    address: Text = ""
    port: int = Field(default=0, ge=0, le=65_535)
    secret: PskHex = Field(default="", repr=False)
    mirrors: Text = ""

    @model_validator(mode="after")
    def _of_one_place(self) -> Disk:
        if self.address and not self.port:
            raise ValueError("an export has an address and a port")
        if self.kind == "memory" and not self.address:
            raise ValueError("far memory comes from another node: it needs an address")
        if self.mirrors == self.part:
            raise ValueError("a disk cannot take its own place")
        return self

    @field_validator("address")
    @classmethod
    def _plain(cls, address: str) -> str:
        if address and not re.fullmatch(r"[A-Za-z0-9.:_-]+", address):
            raise ValueError("it should be an address or the name of a node")
        return address

    @property
    def serial(self) -> str:
        """`disk-…` and `swap-…`; the part's id where that fits, or a digest of it. The guest knows it by that."""
        return self._serial(self.part)

    @property
    def place(self) -> str:
        """The serial of the disk whose place it takes; its own where it takes none."""
        return self._serial(self.mirrors or self.part)

    def _serial(self, part: str) -> str:
        prefix = SERIAL_PREFIXES[self.kind == "memory"]
        if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", part) and len(part) <= SERIAL_CHARACTERS - 5:
            return prefix + part
        return prefix + _digest(part, 12)


class Wanted(Config):
    """`PartOrder.vm`. The guest starts with the amounts and may be given up to the most of each while it runs.

    Memory is what it has near: far memory is a disk. `network_address` is in CIDR form.
    """

    cpu_milli: int = Field(gt=0, le=CPUS_MOST * 1000)
    cpu_most_milli: int = Field(default=0, ge=0, le=CPUS_MOST * 1000)
    memory_bytes: int = Field(ge=MEMORY_LEAST_BYTES)
    memory_most_bytes: int = Field(default=0, ge=0)
    image: Annotated[str, StringConstraints(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
    network_address: str
    gateway: str = ""
    ssh_keys: list[SshKey] = Field(default=[], max_length=100)
    disks: list[Disk] = Field(default=[], max_length=2 * DISKS_MOST)
    cores: list[Annotated[int, Field(ge=0, lt=8192)]] = []
    """The node's cores that it may run on; empty is any."""

    @field_validator("network_address")
    @classmethod
    def _with_prefix(cls, address: str) -> str:
        if "/" not in address:
            raise ValueError("it should have a prefix, like 10.0.0.5/24")
        return str(ipaddress.ip_interface(address))

    @model_validator(mode="after")
    def _consistent(self) -> Wanted:
        if self.gateway and ipaddress.ip_address(self.gateway).version != self.interface.version:
            raise ValueError("gateway and network_address are of two families")
        serials = [disk.serial for disk in self.disks]
        if len(set(serials)) < len(serials):
            raise ValueError("a disk is named twice")
        places = [disk.place for disk in self.disks if disk.place not in serials or disk.place == disk.serial]
        if len(places) > DISKS_MOST:
            raise ValueError(f"a machine has {DISKS_MOST} disks at most")
        taken = [disk.place for disk in self.disks if disk.mirrors]
        if len(set(taken)) < len(taken):
            raise ValueError("two disks are to take the place of the same one")
        return self

    @property
    def interface(self) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
        return ipaddress.ip_interface(self.network_address)

    @property
    def cpus(self) -> int:
        """Whole cores, as many as it takes."""
        return -(-self.cpu_milli // 1000)

    @property
    def cpus_most(self) -> int:
        return max(self.cpus, -(-self.cpu_most_milli // 1000))

    @property
    def memory_mib(self) -> int:
        return self.memory_bytes // MIB

    @property
    def memory_most_mib(self) -> int:
        return max(self.memory_mib, self.memory_most_bytes // MIB)


@dataclass(slots=True, frozen=True)
class VmName:
    """A host's name and incarnation, which name its virtual machine on this node."""

    host: str
    incarnation: int

    @classmethod
    def of(cls, order: PartOrder) -> VmName:
        """Raises InputError for a name that no folder could have."""
        try:
            return cls(_NAMES.validate_python(order.host), order.incarnation)
        except ValidationError:
            raise InputError(f"{order.host!r} is no name of a host", field="host") from None

    def __str__(self) -> str:
        return f"{self.host}-{self.incarnation}"

    @property
    def unit(self) -> str:
        return f"lavalite-vm-{self}.service"

    @property
    def tap(self) -> str:
        """15 characters, as many as an interface may have."""
        return "lv-" + _digest(str(self), 12)

    @property
    def mac(self) -> str:
        """Of the range that everyone may use; the same at each start."""
        digits = "02" + _digest(str(self), 10)
        return ":".join(digits[at : at + 2] for at in range(0, 12, 2))

    def folder(self, vms: Path) -> Path:
        return vms / str(self)


def wanted(order: PartOrder) -> Wanted:
    """What the order says of the machine. Raises InputError with all that is wrong; it never repeats a secret."""
    try:
        return Wanted.model_validate(order.vm, strict=True)
    except ValidationError as error:
        raise InputError(
            faults=[
                Fault(
                    each["type"], each["msg"].removeprefix("Value error, "), ".".join(map(str, ("vm", *each["loc"])))
                )
                for each in error.errors(include_url=False, include_input=False, include_context=False)
            ]
        ) from None


def _digest(text: str, characters: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:characters]
