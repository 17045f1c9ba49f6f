"""One entry of each section of a scenario, as pydantic models: the spelling. `pools`, `queues` and `links` are those
of pools.yml. Amounts come out as integers in the kind's unit, times in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from lavalite.base.errors import InputError
from lavalite.model import amounts
from lavalite.model.job import Gang, Name
from lavalite.model.pools_entries import CapacityEntry
from lavalite.model.pools_hosts import GpuAsk
from lavalite.model.pools_spelling import AskedBandwidth, AskedBytes, Count, Cpu, Entry, Seconds, custom, reads
from lavalite.simulate.draws import Draw, constant

MAX_NODES = 1_000_000
MAX_JOBS = 10_000_000
DISTRIBUTIONS = "Write a duration, or {uniform: [1m, 3m]}, {exponential: 2m} or {lognormal: {median: 2m, sigma: 1}}."


def _draw(value: Any) -> Draw:
    if not isinstance(value, dict):
        return constant(amounts.parse_duration(value))
    if len(value) != 1:
        raise InputError("this is no distribution", code="unknown_value", hint=DISTRIBUTIONS)
    [(kind, typed)] = value.items()
    match kind, typed:
        case "exponential", str():
            return Draw("exponential", amounts.parse_duration(typed))
        case "uniform", [least, most]:
            first, second = amounts.parse_duration(least), amounts.parse_duration(most)
            if second < first:
                raise InputError(f"{most} is less than {least}", code="out_of_range", hint="Write the lesser first.")
            return Draw("uniform", first, second)
        case "lognormal", {"median": median, "sigma": int() | float() as sigma, **rest} if not rest and sigma >= 0:
            return Draw("lognormal", amounts.parse_duration(median), float(sigma))
    raise InputError(f"{kind} is not spelled like that", code="unknown_value", hint=DISTRIBUTIONS)


def _runs(value: Any) -> Draw | None:
    return None if value == "forever" else _draw(value)


Duration = Annotated[Draw, reads(_draw)]
Runs = Annotated[Draw | None, reads(_runs)]
Share = Annotated[int, reads(amounts.parse_share)]
Names = Annotated[list[Name], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class SettingsEntry(Entry):
    """What the daemons are configured with, and how quick things are around them."""

    tick: Seconds = 1
    beat: Seconds = 2
    silent_after: Seconds = 10
    stop_grace: Seconds = 10
    lease: Seconds = 10
    """Without a store for so long, a leader is none any more."""
    takeover: Seconds = 5
    """So long after a leader was lost, another one serves."""
    store_ms: Annotated[int, Field(ge=0, le=60_000)] = 2
    network_ms: Annotated[int, Field(ge=0, le=60_000)] = 1


class NodesEntry(CapacityEntry):
    """`nodes.NAME`: what each offers, every other key a label; with `count` they are NAME-1, NAME-2, …"""

    count: Annotated[int, Field(ge=1, le=MAX_NODES)] | None = None
    joins: Duration = constant(0)

    def names(self, entry: str) -> list[str]:
        return [entry] if self.count is None else [f"{entry}-{n}" for n in range(1, self.count + 1)]


class JobsEntry(Entry):
    """`jobs.NAME`: `count` jobs, the first at `at`, and one `every` so often; without `every` all at once. Without
    `count` there is no end of them, or only one where `every` is not said either.

    `runs` is how long a task takes, `fails` the share of attempts that end with exit code 1.
    """

    at: Seconds = 0
    count: Annotated[int, Field(ge=1, le=MAX_JOBS)] | None = None
    every: Duration | None = None
    tasks: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    gang: dict[str, Any] | bool = False
    cpu: Cpu = 1000
    memory: AskedBytes = 0
    gpu: GpuAsk | None = None
    storage: AskedBytes = 0
    network: AskedBandwidth = 0
    floating: dict[Name, Count] = {}
    pools: dict[str, str] = {}
    runs: Runs
    fails: Share = 0
    queue: str = ""
    host: str = ""
    user: Name = "ada"
    group: str = ""
    policy: str = ""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    walltime: Seconds | None = None
    retries: Annotated[int, Field(ge=0, le=100)] | None = None
    rerunnable: bool = True
    after: Names = []
    """Entries of which all jobs that were submitted by then must have succeeded."""

    @model_validator(mode="after")
    def _in_time(self) -> JobsEntry:
        if self.count is None and self.every is not None and self.every.first == 0:
            raise custom("out_of_range", "jobs without end, all at once", "Write count:, or another every:.")
        return self

    @property
    def endless(self) -> bool:
        """Whether more of it come for ever, or what comes never ends."""
        return self.runs is None or (self.count is None and self.every is not None)

    def placed_together(self) -> Gang | None:
        """What the gang is to look like; None where it is none."""
        if self.gang is False:
            return None
        return Gang.model_validate(self.gang if isinstance(self.gang, Mapping) else {})


class TraceEntry(Entry):
    """`traces[]`: nodes and tasks out of files, of a public trace (`openb`) or in the Standard Workload Format."""

    openb: str = ""
    """The folder with openb_node_list_all_node.csv and openb_pod_list_default.csv."""
    swf: str = ""
    """A file in the Standard Workload Format: its processors are cores."""
    nodes: bool = True
    """Whether openb's nodes are taken, beside its tasks."""
    most: Annotated[int, Field(ge=1)] | None = None
    """The first so many tasks of it."""
    speed: Annotated[int, Field(ge=1)] = 1
    """Arrivals come so many times as fast."""
    queue: str = ""

    @model_validator(mode="after")
    def _one(self) -> TraceEntry:
        if bool(self.openb) == bool(self.swf):
            raise custom("missing", "a trace is openb or swf", "Write openb: FOLDER, or swf: FILE.")
        return self


FAULTS = ("stop_beats", "crash", "partition", "slow", "lose_messages", "drain", "lose_leader", "store_outage")


class FaultEntry(Entry):
    """`faults[]`: what happens, to which nodes, `at` a time or `every` so often, and `for` how long.

    A node's name may be `any`: one at random, another one each time.
    """

    at: Seconds | None = None
    every: Duration | None = None
    lasts: Seconds | None = Field(default=None, alias="for")
    stop_beats: Names = []
    """They beat no more, nor say anything else."""
    crash: Names = []
    """They are gone with all that runs there, and come back with another boot id."""
    partition: Names = []
    """They are cut off: what runs there runs on."""
    slow: Names = []
    """What runs there takes `factor` times as long."""
    factor: Annotated[int, Field(ge=2, le=1000)] = 2
    lose_messages: Share = 0
    """So many of all messages are lost, and with each the session that it was sent in."""
    drain: Names = []
    lose_leader: bool = False
    store_outage: bool = False

    @model_validator(mode="after")
    def _one(self) -> FaultEntry:
        told = [name for name in FAULTS if getattr(self, name)]
        if len(told) != 1:
            raise custom("missing", "one thing goes wrong at a time", f"Write one of {', '.join(FAULTS)}.")
        if (self.at is None) == (self.every is None):
            raise custom(
                "missing", "when it happens is not said, or twice", "Write at: 2m, or every: {exponential: 1h}."
            )
        if self.lasts is None and told[0] in ("store_outage", "lose_messages"):
            raise custom("missing", "how long it lasts is not said", "Write for: 30s.")
        return self

    @property
    def kind(self) -> str:
        return next(name for name in FAULTS if getattr(self, name))

    def nodes(self) -> list[str]:
        found = getattr(self, self.kind)
        return found if isinstance(found, list) else []


class ScenarioEntry(Entry):
    """What stands at the top of a scenario, beside the sections."""

    name: str = ""
    seed: Annotated[int, Field(ge=0)] = 1
    until: Seconds | None = None
    snapshot_every: Seconds = 60
    events: bool = True
    """Whether what happens is told line by line."""
    policy: str = ""
    """Of every queue."""
    settings: SettingsEntry = SettingsEntry()
