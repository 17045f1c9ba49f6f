"""The one configuration of LIM."""

from __future__ import annotations

import ipaddress
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from lavalite.base.config import Config
from lavalite.base.errors import InputError
from lavalite.lim.core import Timing
from lavalite.model.job import Name
from lavalite.model.resources import MOST_SPECIAL, SpecialName
from lavalite.store.open import StoreConfig
from lavalite.wire.address import check_listener, parse_address
from lavalite.wire.tls import TlsConfig

ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104  (compared with, not listened on)


class SuperviseConfig(Config):
    """How the leading LIM runs mbatchd: as its `child`, as a `systemd` unit, or not at all (`none`).

    `lock`: a unit that systemd itself starts and stops, by a path unit that watches the lock file.
    """

    mode: Literal["child", "systemd", "lock", "none"] = "child"
    command: tuple[str, ...] = Field(default=(), description="child: the program and its arguments.")
    unit: str = Field(default="lavalite-mbatchd.service", description="systemd, lock: the unit.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mode == "child" and self.command and not self.command[0]:
            raise ValueError("command begins with an empty text. Write the program, then its arguments.")
        return self


class VipConfig(Config):
    """An address that is on the leader's interface while it leads. Needs CAP_NET_ADMIN and CAP_NET_RAW."""

    address: str = Field(description="With its prefix, such as 198.18.0.100/24. No machine has it for itself.")
    interface: str = Field(min_length=1, max_length=15, pattern=r"^[^\s/:]+$")

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            address = ipaddress.ip_interface(value)
        except ValueError:
            raise ValueError(f"{value[:60]!r} is no IP address. Write it as 198.18.0.100/24.") from None
        if "/" not in value:
            raise ValueError(f"{value} has no prefix. Write {value}/24, or as long as the network's is.")
        if address.is_loopback or address.is_multicast or address.is_unspecified:
            raise ValueError(f"{value} cannot move between machines. Take a free one of the candidates' network.")
        return value


class SpecialConfig(Config):
    """Devices of a kind that an operator named, each path that is there one. `*` and `?` are for parts of names."""

    paths: tuple[str, ...] = Field(min_length=1, description="As /dev/xdma*.")
    model: str = ""

    @field_validator("paths")
    @classmethod
    def _are_paths(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if not path.startswith("/") or "," in path or ";" in path or not path.isprintable():
                raise ValueError(f"{path[:60]!r} is no path of devices. Write it from / on, without , and ;.")
        return paths


class LimConfig(Config):
    """Addresses are `HOST:PORT`. `advertise` is what others dial where `listen` does not say it."""

    cluster: Name
    node: Name
    state_path: Path
    socket_path: Path | None = None
    lock_path: Path | None = None
    listen: str = "127.0.0.1:7869"
    advertise: str = ""
    tls: TlsConfig | None = None
    insecure: bool = False
    candidate: bool = False
    candidates: tuple[str, ...] = Field((), description="HOST:PORT of the LIM on each candidate node.")
    priority: int = Field(5, ge=1, le=10, description="Who has a higher one campaigns first.")
    store: StoreConfig | None = Field(None, description="Candidates only.")
    lease_ttl_seconds: int = Field(5, ge=2, le=300)
    drain_seconds: float = Field(10.0, ge=0, le=300, description="What mbatchd gets to end in at a hand-over.")
    beat_seconds: float = Field(1.0, gt=0, le=60)
    discover_seconds: float = Field(30.0, gt=0, le=3600, description="Between looks at this node's resources.")
    storage_path: Path | None = Field(None, description="What is offered as storage; default: state_path.")
    special: dict[SpecialName, SpecialConfig] = Field(default_factory=dict, max_length=MOST_SPECIAL)
    trust_bundle_path: Path | None = None
    key_path: Path | None = None
    labels: dict[str, tuple[str, ...] | str] = Field(default_factory=dict)
    supervise: SuperviseConfig = SuperviseConfig()
    vip: VipConfig | None = Field(None, description="Candidates only: an address that follows the leader.")
    mbatchd_address: str = "127.0.0.1:6881"
    api_url: str = "http://127.0.0.1:6880"

    @field_validator("listen", "advertise", "mbatchd_address")
    @classmethod
    def _address(cls, value: str) -> str:
        return _checked(value) if value else value

    @field_validator("candidates")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked(address) for address in value)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.candidate and self.store is None:
            raise ValueError("a candidate needs a store. Add store:, or set candidate: false.")
        if not self.candidate and self.store is not None:
            raise ValueError("only candidates reach the store. Remove store:, or set candidate: true.")
        if not self.candidate and not self.candidates:
            raise ValueError("nobody to ask who leads. List the candidates' LIMs under candidates:.")
        if self.candidate and self.supervise.mode == "child" and not self.supervise.command:
            raise ValueError("supervise.mode child needs supervise.command. Write mbatchd's program and arguments.")
        if not self.candidate and self.vip is not None:
            raise ValueError("only a leader has the virtual IP. Remove vip:, or set candidate: true.")
        if not self.advertise and parse_address(self.listen, "listen").host in ANY_ADDRESS:
            raise ValueError(f"others cannot dial {self.listen}. Set advertise: HOST:PORT.")
        return self

    @property
    def timing(self) -> Timing:
        """Where the list of candidates names this node alone, there is nobody to give way to."""
        priority = 10 if self.candidate and len(self.candidates) == 1 else self.priority
        return Timing(self.lease_ttl_seconds, priority, drain_seconds=self.drain_seconds)

    @property
    def local_socket_path(self) -> Path:
        return self.socket_path or self.state_path / "lim.sock"

    @property
    def master_lock_path(self) -> Path:
        return self.lock_path or self.state_path / "master.lock"

    @property
    def node_key_path(self) -> Path:
        return self.key_path or self.state_path / "node.key"

    @property
    def label_values(self) -> dict[str, list[str]]:
        return {k: [v] if isinstance(v, str) else list(v) for k, v in self.labels.items()}


def check_config(config: LimConfig) -> None:
    """What the model alone cannot know. Raises InputError."""
    check_listener(config.listen, config.tls is not None, config.insecure)
    parse_address(f"unix:{config.local_socket_path.absolute()}", "socket_path")
    if config.tls is not None:
        config.tls.server_context()
        config.tls.client_context()
    if config.vip is not None:
        _check_vip(config.vip)


def _check_vip(vip: VipConfig) -> None:
    interfaces = sorted(name for _, name in socket.if_nameindex())
    if vip.interface not in interfaces:
        hint = f"Name one of {', '.join(interfaces)}."
        raise InputError(f"this machine has no interface {vip.interface}", field="vip.interface", hint=hint)
    if find_spec("pyroute2") is None:
        hint = "Install lavalite[node], or remove vip:."
        raise InputError("the Python package pyroute2 is not installed", field="vip", hint=hint)


def _checked(text: str) -> str:
    try:
        address = parse_address(text)
    except InputError as error:
        raise ValueError(str(error)) from None
    if address.path:
        raise ValueError(f"{text!r} is a Unix socket. Write HOST:PORT.")
    return text
