"""What /v1 takes and answers. One idea has one name everywhere: YAML key, CLI column, API field, Ansible variable.

    GET    /status                                       Health   (needs no token)
    GET    /v1/status                                    Status
    GET    /v1/nodes            /v1/nodes/NAME           Page of Node, Node               ?state= &selector=
    POST   /v1/nodes/NAME/drain                          → Node                           ?reason= &deadline_seconds=
                                                                                          &no_deadline= &dry_run=true
    POST   /v1/nodes/NAME/resume                         → Node                           ?dry_run=true
    DELETE /v1/nodes/NAME                                → Node                           ?dry_run=true
    PUT    /v1/nodes/NAME/labels                         LabelsPut → Node                 ?dry_run=true
    GET    /v1/resources                                 Page of NodeResources (ETag)     ?state=
    GET    /v1/pools            /v1/pools/NAME           Page of Pool, Pool
    GET    /v1/queues           /v1/queues/NAME          Page of Queue, Queue
    GET    /v1/hosts            /v1/hosts/NAME           Page of Host, Host               ?state=
    GET    /v1/reservations     /v1/reservations/NAME    Page of Reservation, Reservation ?state= &group=true
    PUT    /v1/reservations/NAME                         ReservationPut → ReservationResult   ?dry_run=true
    DELETE /v1/reservations/NAME                         → ReservationResult              ?dry_run=true
    POST   /v1/reservations/NAME/drain|resume            → Reservation                    ?dry_run=true
    PUT    /v1/{pools,queues,hosts}/NAME                 EntryPut → DefinitionResult      ?dry_run=true
    DELETE /v1/{pools,queues,hosts}/NAME                 → DefinitionResult               ?dry_run=true &if_version=
    GET    /v1/definition                                Definition (ETag)
    PUT    /v1/definition         (If-Match)             DefinitionPut → DefinitionResult ?dry_run=true
    GET    /v1/jobs                                      Page of Job     ?state= &user= &queue= &host= &name=
                                                                         &component= &reservation=
    POST   /v1/jobs                                      SubmitBatch → Submitted          ?dry_run=true
    GET    /v1/jobs/N                                    Job (with `why` while it waits)
    GET    /v1/jobs/N/tasks                              Page of Task    ?state=
    POST   /v1/jobs/N/cancel                             CancelAsk → Job
    POST   /v1/jobs/N/hold|release|suspend|resume|requeue  → Job
    GET    /v1/jobs/N/output                             bytes           ?task= &stream= &follow= &offset=
    GET    /v1/explain/N                                 Explanation
    GET    /v1/decisions/N                               DecisionRecord  ?task=
    GET    /v1/commitments                               Page of Commitment
    GET    /v1/quarantine                                Page of Quarantined
    GET    /v1/events                                    server-sent events, one Change each
    GET    /v1/events/recent                             ChangePage      ?since= &kind= &name= &limit= &wait_seconds=
    POST   /v1/plan                                      DefinitionPut → Plan

Errors: `{"errors": [{code, message, field, hint, file, line}, …]}`; 400 bad input, 401, 403, 404, 409 conflict,
412 version, 429 too much, 503 not the leader or the store is down; a backup answers 307 to where the leader is.
Collections: `?limit=` (at most 1,000) and `?cursor=`; `next_cursor` is null on the last page.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, ValidatorFunctionWrapHandler, field_validator

from lavalite.api.shapes import Ask, Shape
from lavalite.api.status import Headroom as Headroom
from lavalite.api.status import Health as Health
from lavalite.api.status import Status as Status
from lavalite.model.job import TYPED, Amount, JobSpec

Item = TypeVar("Item")
MAX_RESERVED_SECONDS = 366 * 86400
LATEST_SECONDS = 2.0**40
"""The latest time that a start may be at, so that nobody has to show a year of five digits by the thousand."""


class Page(Shape, Generic[Item]):
    items: list[Item]
    next_cursor: str | None = None


class ApiFault(Shape):
    code: str
    message: str
    field: str = ""
    hint: str = ""
    file: str = ""
    line: int = 0


class Errors(Shape):
    errors: list[ApiFault]


class Amounts(Shape):
    """Of one kind, in the kind's unit: milli-cores, bytes, milli-GPUs, bits a second."""

    capacity: int
    committed: int
    free: int


class Drain(Shape):
    """Nothing new is placed on the node. From `deadline_at` on, `deadline_seconds` after it was asked for, what still
    runs there is ended; without one it may run on."""

    reason: str = ""
    deadline_seconds: int | None = None
    deadline_at: float | None = None


class Node(Shape):
    """`state`: ready, drained, silent (LIM hears nothing), unknown (no session), lost.

    `labels` are those that its LIM tells and, over them, those that people gave it, `operator_labels`.
    """

    name: str
    state: str
    labels: dict[str, list[str]] = {}
    operator_labels: dict[str, list[str]] = {}
    drain: Drain | None = None
    resources: dict[str, Amounts] = {}
    gpu_models: list[str] = []
    hosts: list[str] = []
    tasks: int = 0
    boot_id: str = ""
    journal_id: str = ""
    software_version: str = ""
    offer_version: int = 0
    beat_age_seconds: float | None = None
    round_trip_ms: float | None = None
    lost_beats: int = 0


class KeptAmounts(Amounts):
    """`kept` is what of `free` is only for the tasks of reservations, now."""

    kept: int = 0


class NodeDevice(Shape):
    """One GPU, MIG instance or special device, and how much of it is free: 1000 is all of it."""

    kind: str
    id: str
    model: str = ""
    memory_bytes: int = 0
    numa_node: int = -1
    pci_address: str = ""
    attributes: dict[str, str] = {}
    free_milli: int


class NodeResources(Shape):
    """What a node has, kind by kind and device by device. `state` is as of Node; `version` grows with its offer."""

    node: str
    state: str
    labels: dict[str, list[str]] = {}
    resources: dict[str, KeptAmounts]
    devices: list[NodeDevice] = []
    version: int = 0


class LabelsPut(Ask):
    """Labels that people give to a node. None takes one away; `purge` takes away all that are not named."""

    labels: dict[str, list[str] | None] = Field(max_length=1000)
    purge: bool = False


class QuotaUse(Shape):
    """How a group stands in a pool, in the kind's unit; `borrow` and `lend` are None where they have no limit.

    `left` is what it may take beyond what it holds now.
    """

    pool: str
    group: str
    kind: str
    nominal: int
    borrow: int | None = None
    lend: int | None = None
    used: int = 0
    borrowed: int = 0
    left: int = 0


class ShareUse(Shape):
    """How a group stands in a queue, or a `user` in its group; the one with the least `standing` goes first.

    `used_core_seconds` is decayed use, `held_milli` what is held now, in milli-cores. The permilles are of all the
    groups of the queue, or of all the users of the group.
    """

    queue: str
    group: str
    user: str = ""
    share: int
    entitled_permille: int
    used_permille: int
    used_core_seconds: int
    held_milli: int
    standing: int


class Pool(Shape):
    name: str
    kinds: list[str]
    default: bool = False
    nodes: list[str] = []
    resources: dict[str, Amounts] = {}
    quota: list[QuotaUse] = []
    spec: dict[str, Any] = {}
    version: int = 0


class Queue(Shape):
    name: str
    priority: int
    policy: str
    default: bool = False
    pending: int = 0
    running: int = 0
    shares: list[ShareUse] = []
    """Of its groups; where one queue is asked for, of its users too."""
    spec: dict[str, Any] = {}
    version: int = 0


class HostPart(Shape):
    id: str
    kind: str
    amount: int
    provider: str
    pool: str = ""
    devices: list[str] = []
    circuit: str = ""


class HostCircuit(Shape):
    """Bandwidth that is reserved between a host's anchor and one other node, on every link between them."""

    id: str
    anchor: str
    provider: str
    bits_per_second: int
    links: list[str] = []


class Host(Shape):
    """A logical host. `reason` says why it is not composed, or what is amiss. `resources` count what jobs on it hold.

    `step` is how far it is while it is put together or taken apart; `leaving` are the parts and circuits that go, and
    `degraded` the parts that are lost and that it goes on without. On one that is `drained` nothing new starts. One
    that is reserved is given back at `reserved_until`, in seconds since the Unix epoch. `address` is a virtual
    machine's own; every other host is reached on its anchor.
    """

    name: str
    state: str
    anchor: str = ""
    pools: list[str] = []
    parts: list[HostPart] = []
    circuits: list[HostCircuit] = []
    resources: dict[str, Amounts] = {}
    reason: str = ""
    step: str = ""
    leaving: list[str] = []
    degraded: list[str] = []
    drained: bool = False
    executor: str = "bare"
    address: str = ""
    reserved_until: float | None = None
    spec: dict[str, Any] = {}
    version: int = 0


class Reservation(Shape):
    """`amounts` are kept on each of `nodes`; `used` is what its own tasks hold of them, over all nodes.

    `state` is planned before `start`, then active; both times are seconds since the Unix epoch. One that recurs,
    `every` day, weekday or week by the clock of `zone` and before `until`, shows its present or next time.
    """

    name: str
    state: str
    owner: str
    users: list[str] = []
    pool: str = ""
    group: bool = False
    """Whether it is a compute group, for one job at a time."""
    component: str = ""
    """Of a compute group: the only component that it lets in, if there is just one."""
    drained: bool = False
    """Whether nothing new starts in it."""
    amounts: dict[str, int]
    nodes: list[str]
    start: float
    end: float
    timeout_seconds: int | None = None
    every: str = ""
    zone: str = ""
    until: float | None = None
    used: dict[str, int] = {}


class ReservationPut(Ask):
    """These amounts on each of `count` nodes, of a pool or of all, from `start` (now, where absent) on.

    `selector` is in the words of pools.yml: only of nodes that it selects. A `group` is a compute group, of any
    component's or of the one that is named.

    Unused for `timeout_seconds` after its start, it ends early. With `every` it recurs at the same time of day by the
    clock of `zone`, before `until`, for a year at most.
    """

    cpu_milli: Amount = 0
    memory_bytes: Amount = 0
    gpu_milli: Amount = 0
    storage_bytes: Amount = 0
    count: int = Field(default=1, ge=1, le=10_000)
    pool: str = ""
    selector: str | list[str] | dict[str, str | list[str]] | None = None
    group: bool = False
    component: str = Field(default="", max_length=63)
    start: float | None = Field(default=None, allow_inf_nan=False, le=LATEST_SECONDS)
    duration_seconds: int = Field(ge=1, le=MAX_RESERVED_SECONDS)
    users: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(default=[], max_length=1000)
    timeout_seconds: int | None = Field(default=None, ge=1, le=MAX_RESERVED_SECONDS)
    every: Literal["", "day", "weekday", "week"] = ""
    zone: str = Field(default="", max_length=64)
    until: float | None = Field(default=None, allow_inf_nan=False, le=LATEST_SECONDS)

    def amounts(self) -> dict[str, int]:
        """Amount per kind, zeros left out."""
        asked = {"cpu": self.cpu_milli, "memory": self.memory_bytes, "gpu": self.gpu_milli}
        asked["storage"] = self.storage_bytes
        return {kind: amount for kind, amount in asked.items() if amount}


class ReservationResult(Shape):
    """What it is, or would be; after its end what it was."""

    changed: bool
    reservation: Reservation


class Job(Shape):
    """`counts` are tasks by state; `why` is one sentence, only while something of it waits.

    `starts` is then `planned`, `about` or `not before`, all with `starts_at`, or `unknown`; `starts_why` says why.
    """

    id: int
    name: str
    user: str
    group: str = ""
    queue: str
    host: str = ""
    reservation: str = ""
    state: str
    command: list[str]
    array: str = ""
    tasks: int
    counts: dict[str, int]
    submitted_at: float
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    nodes: list[str] = []
    why: str = ""
    starts: str = ""
    starts_at: float | None = None
    starts_why: str = ""
    key: str = ""
    gang: dict[str, Any] | None = None
    affinity: list[str] = []
    request: dict[str, Any] = {}
    parts: list[dict[str, Any]] = []
    """Each with `name`, `tasks`, `request` as above and perhaps its own `command`; empty where it has none."""
    depends: list[str] = []
    rerunnable: bool = False
    walltime_seconds: int | None = None
    grace_seconds: int | None = None
    start_within_seconds: int | None = None
    component: str = ""
    """Whose compute group it is, if any."""
    gpus: list[str] = []
    """Those that it holds, where it has a single task; `gpu_topology` is what they have in common, as of Task."""
    gpu_topology: str = ""
    attempts: int = 0
    """How many attempts at its task have ended, where it has a single one."""
    told_to_end: bool = False
    """Whether it is being cancelled."""
    preemptions: int = 0
    """How often its tasks have ended since they were preempted."""


class Task(Shape):
    """`index` is the array index, 0 where the job is no array. `part` is the name of the one that it is of, if any.

    `gpus` are those that it holds; `gpu_topology`, nvlink, pcie or numa, is what all of them have in common, if any.
    """

    job: int
    index: int
    part: str = ""
    state: str
    attempt: int = 0
    node: str = ""
    gpus: list[str] = []
    gpu_topology: str = ""
    special: dict[str, list[str]] = {}
    """Devices that it holds of kinds that an operator named, by kind."""
    exit_code: int | None = None
    reason: str = ""
    """Why it ended; while it runs, why it is about to."""
    preemptions: int = 0
    """How often it has ended since it was preempted."""
    started_at: float | None = None
    ended_at: float | None = None


class Commitment(Shape):
    owner: str
    shares: list[dict[str, Any]]
    epoch: tuple[int, int]
    committed_at: float
    state: str = ""
    node: str = ""


class Quarantined(Shape):
    """An attempt that a node runs and nobody here knows. A person decides; it is not killed silently."""

    node: str
    attempt: str
    state: str
    at: float


class Explanation(Shape):
    """Why a job waits: `filters` counts the nodes that each filter turned away; `lacks` is what the nearest lacks.

    `starts`, `starts_at` and `starts_why` are as in Job.
    """

    job: int
    state: str
    asks: str = ""
    nodes: int = 0
    filters: dict[str, int] = {}
    nearest: str = ""
    lacks: dict[str, int] = {}
    soon: bool = False
    """Whether it may start in a moment: a scheduler pass, or the write of its commitment, is all that is missing, or
    nodes have yet to find a leader that has just begun to serve."""
    held_by: list[str] = []
    waits_for: list[str] = []
    fairshare: dict[str, Any] = {}
    """Where its group and user stand, in a queue with fairshare."""
    parts: list[dict[str, Any]] = []
    """Of a job with parts, each as if it were alone: `name`, `tasks`, `asks`, `fit` (how many tasks have room) and,
    where none has, `nodes`, `filters`, `nearest`, `lacks`, `held_by` and `sentence`."""
    sentence: str = ""
    starts: str = ""
    starts_at: float | None = None
    starts_why: str = ""


class Definition(Shape):
    """The applied document: sections of entries as they were typed. `version` is 0 before the first."""

    version: int
    cluster: str = ""
    pools: dict[str, Any] = {}
    logical_hosts: dict[str, Any] = {}
    queues: dict[str, Any] = {}
    links: list[Any] = []
    owned: dict[str, list[str]] = {}


class DefinitionPut(Ask):
    """The whole document as text (`file` is named in errors). `purge` removes what it owned and no longer has."""

    text: str = Field(max_length=8 * 1024 * 1024)
    file: str = "pools.yml"
    purge: bool = False


class EntryPut(Ask):
    """One entry as it would stand in pools.yml. `if_version` is the definition's version it was read at.

    With `reserve_seconds`, what logical hosts of the entry would take is held for so long, and they are composed when
    they are applied (`POST /v1/hosts/NAME/apply`); else what was held is given back.
    """

    spec: dict[str, Any]
    if_version: int | None = None
    reserve_seconds: int | None = Field(default=None, ge=1, le=366 * 86400)


class DefinitionResult(Shape):
    """`before` and `after` are the documents; `hosts` what every logical host is or would be."""

    changed: bool
    version: int
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    hosts: list[Host] = []


class Plan(Shape):
    hosts: list[Host]


class Submit(Ask):
    """`key` is made by the client: the same key again answers with the job of the first time."""

    spec: JobSpec
    key: str = Field(default="", max_length=128)

    @field_validator("spec", mode="wrap")
    @classmethod
    def _nothing_unknown(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        """A stored spec may come from a later release and hold what we do not know; one that is typed may not."""
        if not isinstance(value, dict):
            return validate(value)
        # A compute group may be of no CPU at all; who asks for one says so on purpose.
        context = None if value.get("component") else TYPED
        return JobSpec.model_validate(value, extra="forbid", context=context)


class SubmitBatch(Ask):
    jobs: list[Submit] = Field(min_length=1, max_length=5000)


class Submitted(Shape):
    """Job ids, in the order of the batch. `existing` are those that a key had made before."""

    ids: list[int]
    existing: list[int] = []


class CancelAsk(Ask):
    """`tasks` are array indices, all if absent. `force`: an operator says that what is UNKNOWN has ended.

    With `waiting` only what holds nothing yet ends; what was placed meanwhile goes on.
    """

    tasks: list[int] | None = Field(default=None, max_length=100_000)
    force: bool = False
    waiting: bool = False


CONSOLE_HEADER = "LavaLite-Console"
"""Of the answer that is what a console says: the key to type with."""


class ConsoleTyped(Ask):
    """Base64 of what is typed at a console, 4 KiB at most."""

    data_base64: str = Field(default="", max_length=5464)
    leave: bool = False


class Change(Shape):
    """What /v1/events tells: `kind` job, task, group, node, host, reservation or definition; `name` which; `state`
    what it is now. A group is a job of a component: it is told twice."""

    kind: str
    name: str
    state: str
    at: float


class ChangePage(Shape):
    """`cursor` is where to go on. `missed`: some of what came after the cursor asked for is not known any more."""

    items: list[Change]
    cursor: str
    missed: bool = False
