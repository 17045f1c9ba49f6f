"""What may be asked for: requirements (amounts) and constraints (where, how, for whom), read from plain mappings.

Amounts are written as people write them (`cpu: 4`, `memory: "16GiB"`, `gpu: 0.5`) or as integers under the names that
groups answer with (`cpu_milli`, `memory_bytes`, `gpu_milli`), so that what one group has can be asked for again.
Nothing that is not said is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lavalite.base.errors import Fault, InputError
from lavalite.model import amounts
from lavalite.model.job import Name
from lavalite.model.request import MAX_AMOUNT, Request
from lavalite.model.resources import WHOLE, SpecialName
from lavalite.model.selector import Selector

Isolation = Literal["auto", "mig", "mps", "none"]
Level = Literal["", "nvlink", "pcie", "numa"]
STRATEGIES = {
    "": "best-fit",
    "binpack": "binpack",
    "spread": "spread",
    "priority": "best-fit",
    "affinity": "best-fit",
    "anti-affinity": "best-fit",
    "topology": "best-fit",
    "best-fit": "best-fit",
    "first-fit": "first-fit",
    "round-robin": "round-robin",
    "gpu-packing": "gpu-packing",
    "fgd": "fgd",
}
"""What may be said → the placement policy that scores nodes by it (lavalite.placement.registry)."""
MAX_WAIT_SECONDS = 7 * 86400

M = TypeVar("M", bound=BaseModel)


def _reads(parse: Callable[[Any], int]) -> BeforeValidator:
    def read(value: Any) -> int:
        try:
            return amounts.asked(parse)(value)
        except InputError as error:
            raise ValueError(error.fault.sentence()) from None

    return BeforeValidator(read)


Cpu = Annotated[int, _reads(amounts.parse_cpu)]
Bytes = Annotated[int, _reads(amounts.parse_bytes)]
Gpu = Annotated[int, _reads(amounts.parse_gpu)]
Bandwidth = Annotated[int, _reads(amounts.parse_bandwidth)]
Duration = Annotated[int, BeforeValidator(lambda v: v if type(v) is int else _duration(v)), Field(ge=0)]
Exact = Annotated[int, Field(strict=True, gt=0, le=MAX_AMOUNT)]


def _duration(value: Any) -> int:
    try:
        return amounts.parse_duration(value)
    except InputError as error:
        raise ValueError(error.fault.sentence()) from None


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GpuRequirement(_Asked):
    count: Gpu
    model: str = ""
    memory: Bytes = 0
    """Of each GPU at least."""
    mig: str = ""
    """A MIG profile, as `1g.10gb`: then `count` instances of it."""
    topology: Level = ""
    """What all of them must have in common."""


class Requirements(_Asked):
    """See the module's docstring. A kind is asked for under one of its two names."""

    cpu: Cpu = 0
    memory: Bytes = 0
    gpu: GpuRequirement | None = None
    storage: Bytes = 0
    network: Bandwidth = 0
    special: dict[SpecialName, Exact] = {}
    isolation: Isolation = "auto"
    """Of a part of a GPU: by a MIG instance, by MPS, by whichever of them can be had (auto), or by nothing."""

    cpu_milli: Exact | None = None
    memory_bytes: Exact | None = None
    gpu_milli: Exact | None = None
    storage_bytes: Exact | None = None
    network_bits_per_second: Exact | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_gpu(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "gpu" in value and not isinstance(value["gpu"], Mapping):
            return {**value, "gpu": {"count": value["gpu"]}}
        return value

    @model_validator(mode="after")
    def _sums(self) -> Requirements:
        for words, exact in (
            ("cpu", "cpu_milli"),
            ("memory", "memory_bytes"),
            ("gpu", "gpu_milli"),
            ("storage", "storage_bytes"),
            ("network", "network_bits_per_second"),
        ):
            if getattr(self, words) and getattr(self, exact) is not None:
                raise ValueError(f"{words} and {exact} say the same; give one of them")
        milli = self.gpu_count_milli
        if milli > WHOLE and milli % WHOLE:
            raise ValueError(f"gpu: {amounts.format_gpu(milli)} GPUs: more than one is counted whole")
        if self.gpu is not None and self.gpu.mig and milli % WHOLE:
            raise ValueError(f"gpu: {self.gpu.mig} is a MIG instance, and such are given out whole")
        if self.gpu is not None and self.gpu.mig and self.isolation in ("mps", "none"):
            raise ValueError(f"isolation: {self.isolation}, and gpu.mig asks for MIG instances; give one of them")
        if not any(self.request().amounts().values()):
            raise ValueError("nothing is asked for; give cpu, memory, gpu, storage, network or special")
        return self

    @property
    def gpu_count_milli(self) -> int:
        return self.gpu.count if self.gpu is not None else self.gpu_milli or 0

    def request(self, level: Level = "") -> Request:
        """As placement reads it. `level` is demanded of the GPUs, if their own entry demands nothing."""
        gpu = self.gpu or GpuRequirement.model_construct(count=self.gpu_milli or 0)
        several = self.gpu_count_milli > WHOLE
        return Request(
            cpu_milli=self.cpu_milli or self.cpu,
            memory_bytes=self.memory_bytes or self.memory,
            gpu_milli=self.gpu_count_milli,
            gpu_model=gpu.model,
            gpu_memory_bytes=gpu.memory,
            gpu_mig=gpu.mig,
            gpu_topology=(gpu.topology or level) if several and not gpu.mig else "",
            storage_bytes=self.storage_bytes or self.storage,
            network_bits_per_second=self.network_bits_per_second or self.network,
            special=dict(self.special),
        )


class Constraints(_Asked):
    """Where, how and for whom. All that is said must hold, but for the strategy, which prefers."""

    strategy: str = ""
    node: str = ""
    nodes: Any = None
    """A selector in the words of pools.yml: labels, or patterns of names."""
    pool: str = ""
    """All of it is of this pool, as far as the pool has the kind."""
    team: str = ""
    """For whose quota it counts; else the component's own name."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """Of those who wait for the same, the highest goes first, and nobody overtakes it."""
    affinity: list[Name] = Field(default=[], max_length=16)
    """Components near any of whose groups it must be: on the same node, or with `within` one alike in that label."""
    anti_affinity: list[Name] = Field(default=[], max_length=16)
    within: str = Field(default="", max_length=63)
    topology: Level = ""
    group: str = ""
    """A group that was created or reserved before, and is to be taken as it is."""
    wait: Duration = 0
    """For so long to wait for room, before it is refused."""
    lifetime: Literal["process", "manual"] = "process"
    """Without a running system: whether the allocation ends when nobody who uses it lives any more."""

    @model_validator(mode="after")
    def _known(self) -> Constraints:
        if self.strategy not in STRATEGIES:
            raise ValueError(
                f"strategy: there is no {self.strategy[:40]!r}; there are {', '.join(filter(None, STRATEGIES))}"
            )
        if self.wait > MAX_WAIT_SECONDS:
            raise ValueError("wait: more than 7d")
        if self.strategy == "affinity" and not self.affinity:
            raise ValueError("strategy affinity needs `affinity`: the components to be near")
        if self.within and not (self.affinity or self.anti_affinity):
            raise ValueError("within says how near or far; give affinity or anti_affinity too")
        self.selector()
        return self

    def selector(self) -> Selector | None:
        if self.nodes is None:
            return None
        try:
            return Selector.parse(self.nodes)
        except InputError as error:
            raise ValueError(f"nodes: {error.fault.sentence()}") from None


class Run(_Asked):
    """The component's process, where the provider runs it."""

    command: list[str] = Field(min_length=1, max_length=4096)
    environment: dict[str, str] = {}
    drain_seconds: Annotated[int, Field(ge=0, le=86400)] = 30
    """Between the request to end and the end by force."""
    image: str = Field(default="", max_length=512)
    """Of the container, where components run in such; else the provider's own."""


@dataclass(slots=True, frozen=True)
class Ask:
    """All that one allocation asks for, read."""

    component: str
    requirements: Requirements
    constraints: Constraints = field(default_factory=Constraints)
    run: Run | None = None

    @property
    def request(self) -> Request:
        return self.requirements.request(self.constraints.topology)

    @property
    def policy(self) -> str:
        return STRATEGIES[self.constraints.strategy]

    @property
    def team(self) -> str:
        return self.constraints.team or self.component


class _Named(BaseModel):
    component_name: Name


def read_ask(component_name: str, resources: Mapping[str, Any]) -> Ask:
    """RESOURCES of lavalite.providers.base. Raises InputError with all faults; `component_name` may be empty."""
    faults: list[Fault] = []
    if component_name:
        _read(_Named, {"component_name": component_name}, "", faults)
    if not isinstance(resources, Mapping):
        raise InputError(f"requirements are a mapping, not a {type(resources).__name__}", field="requirements")
    asked = {key: value for key, value in resources.items() if key not in ("constraints", "run")}
    requirements = _read(Requirements, asked, "requirements", faults)
    constraints = _read(Constraints, resources.get("constraints") or {}, "constraints", faults)
    run = _read(Run, resources["run"], "run", faults) if resources.get("run") else None
    if faults or requirements is None or constraints is None:
        raise InputError(faults=faults)
    return Ask(component_name, requirements, constraints, run)


def _read(model: type[M], value: Any, where: str, faults: list[Fault]) -> M | None:
    if not isinstance(value, Mapping):
        faults.append(Fault("bad_input", f"a mapping is wanted, not a {type(value).__name__}", where))
        return None
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        known = ", ".join(model.model_fields)
        for found in error.errors(include_url=False):
            at = ".".join(filter(None, [where, *(str(step)[:40] for step in found["loc"])]))
            message = str(found["msg"]).removeprefix("Value error, ")
            hint = ""
            if found["type"] == "extra_forbidden":
                message, hint = "there is no such key", f"There are {known}."
            elif found["type"] == "string_pattern_mismatch":
                message, hint = (
                    "it is no name",
                    "Use letters, digits, _, . and -, a letter or digit first, at most 63.",
                )
            faults.append(Fault("bad_input", message, at, hint))
        return None
