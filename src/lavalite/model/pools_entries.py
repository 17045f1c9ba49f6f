"""One entry of each section of pools.yml, as pydantic models: the spelling, and nothing that needs a second entry.

What an entry may not hold is refused here; what holds between entries is in pools_check, what holds against real
nodes in pools_fit. Amounts come out as integers in the kind's unit.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lavalite.base.errors import InputError
from lavalite.model.job import Name
from lavalite.model.pools_spelling import (
    Bandwidth,
    Bytes,
    Count,
    Cpu,
    Entry,
    Gpu,
    Kind,
    Nodes,
    Seconds,
    Special,
    custom,
    spelled_short,
)
from lavalite.model.resources import KINDS
from lavalite.model.selector import Selector
from lavalite.model.specs import TASKS, Limits


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
    _short = spelled_short("count")


class CapacitySpecial(Entry):
    count: Annotated[int, Field(ge=0, le=1024)]
    model: str = ""
    _short = spelled_short("count")


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
