"""All frames that daemons exchange: one tagged union. On the wire: 4 bytes of length, big-endian, then JSON.

The first frame on a connection is a Hello; the answer is a Welcome or a Refused. Three conversations use them:

    agent ⇄ mbatchd     Hello Welcome Register Registered Dispatch Stop Report ReportAck Beat BeatAck
                        HostsHere HostsApplied PartsHere PartsApplied HostAsk HostAnswer
                        Read CancelRead Output Console Typed Bye
    LIM ⇄ LIM           Hello Welcome Beat BeatAck WhoLeads Leader Exchange Granted
    local ⇄ LIM socket  Hello Welcome WhoLeads Leader AskToken Granted AskOffer Offer AskMembers Members
                        Ready Deadline Resign
    local ⇄ agent       Hello Welcome HostAsk HostAnswer

A field that a peer does not know is ignored; a tag that it does not know ends the connection with a reason.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from lavalite.model.resources import NodeOffer

PROTOCOL_MIN, PROTOCOL_MAX = 1, 1
MAX_FRAME_BYTES = 4 * 1024 * 1024

EpochPair = tuple[int, int]
"""(generation, create revision of the leader key): compares as a tuple, only grows."""


class Frame(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Hello(Frame):
    """`role` says which conversation this is. `token` is demanded wherever the listener is not a local socket."""

    type: Literal["hello"] = "hello"
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX
    software_version: str
    cluster: str
    node: str
    role: Literal["agent", "lim", "local"]
    journal_id: str = ""
    boot_id: str = ""
    token: str = Field(default="", repr=False)


class Welcome(Frame):
    type: Literal["welcome"] = "welcome"
    protocol: int = PROTOCOL_MAX
    software_version: str
    node: str
    epoch: EpochPair | None = None


class Refused(Frame):
    """Ends a connection, or one request on it. `code` is stable, `message` is for people."""

    type: Literal["refused"] = "refused"
    code: str
    message: str


class Bye(Frame):
    type: Literal["bye"] = "bye"
    reason: str = ""


# --- beats ----------------------------------------------------------------------------------------------------


class Beat(Frame):
    """`sent` is the sender's own monotonic clock in seconds; the ack returns it, so that only one clock is used.

    `round_trip_ms` and `lost` are what the sender measured so far. `offer` travels when its version changed.
    """

    type: Literal["beat"] = "beat"
    seq: int
    sent: float
    round_trip_ms: float | None = None
    lost: int = 0
    offer_version: int = 0
    offer: NodeOffer | None = None


class BeatAck(Frame):
    type: Literal["beat_ack"] = "beat_ack"
    seq: int
    sent: float
    epoch: EpochPair | None = None
    want_offer: bool = False


# --- leadership -----------------------------------------------------------------------------------------------


class WhoLeads(Frame):
    type: Literal["who_leads"] = "who_leads"


class Leader(Frame):
    """Who leads, as the answering LIM knows. Addresses are `host:port`. `node` is empty when nobody is known."""

    type: Literal["leader"] = "leader"
    node: str = ""
    epoch: EpochPair | None = None
    lim_address: str = ""
    mbatchd_address: str = ""
    api_url: str = ""
    mine: bool = False
    """Whether the answering LIM itself leads."""
    leader_key: str = ""
    leader_create_revision: int = 0
    deadline: float | None = None
    """CLOCK_BOOTTIME seconds of this machine; only when `mine`."""


class Deadline(Frame):
    """LIM → mbatchd: you may act until `deadline` (CLOCK_BOOTTIME, seconds). A deadline in the past: end now."""

    type: Literal["deadline"] = "deadline"
    epoch: EpochPair
    deadline: float


class Ready(Frame):
    """mbatchd → LIM: I serve."""

    type: Literal["ready"] = "ready"
    epoch: EpochPair
    version: str
    pid: int
    mbatchd_address: str
    api_url: str


class Resign(Frame):
    """Please hand over. mbatchd is drained and stopped, then the lease is revoked."""

    type: Literal["resign"] = "resign"


class AskToken(Frame):
    type: Literal["ask_token"] = "ask_token"
    audience: str


class Exchange(Frame):
    """A node's signed assertion, to be exchanged for a token."""

    type: Literal["exchange"] = "exchange"
    assertion: str = Field(repr=False)
    audience: str


class Granted(Frame):
    type: Literal["granted"] = "granted"
    token: str = Field(repr=False)
    expires_at: float


class AskOffer(Frame):
    """What does this node offer? Answered at once with what was discovered last."""

    type: Literal["ask_offer"] = "ask_offer"


class Offer(Frame):
    type: Literal["offer"] = "offer"
    offer: NodeOffer


class AskMembers(Frame):
    type: Literal["ask_members"] = "ask_members"


class Member(Frame):
    node: str
    alive: bool
    beat_age_seconds: float
    round_trip_ms: float | None = None
    lost: int = 0
    software_version: str = ""
    offer_version: int = 0


class Members(Frame):
    """Who beats to the leading LIM."""

    type: Literal["members"] = "members"
    members: list[Member]


# --- execution ------------------------------------------------------------------------------------------------


class Attempt(Frame):
    """One attempt to be started: all that the agent needs, nothing it has to ask for.

    `id` is `JOB.TASK.ATTEMPT`. `start_by` etc. do not exist: an attempt is started at once or refused.
    `fence_after_seconds` is 0 for an attempt that is not rerunnable: it outlives a lost connection.
    """

    id: str
    journal_id: str
    command: list[str]
    cwd: str = ""
    environment: dict[str, str] = {}
    stdout_path: str = ""
    stderr_path: str = ""
    user: str = ""
    uid: int = -1
    gid: int = -1
    cpu_milli: int = 0
    memory_bytes: int = 0
    devices: dict[str, list[str]] = {}
    walltime_seconds: int | None = None
    fence_after_seconds: float = 0.0
    host: str = ""


class AttemptReport(Frame):
    """What the journal says of an attempt. `state`: refused, started, suspended, resumed, ended.

    Repeated until acknowledged. `exit_code` is negative for a signal. `reason` says who ended it: `exit`,
    `walltime`, `fence`, `stop`, `lost` (was journalled, and no trace of it is left), or why it was refused.
    """

    id: str
    state: Literal["refused", "started", "suspended", "resumed", "ended"]
    at: float
    exit_code: int | None = None
    reason: str = ""
    pid: int = 0


MAX_REASON_CHARACTERS = 200
"""Of a report's reason; more is not kept. All that is unsettled must fit into one Register."""


class Register(Frame):
    """Agent → mbatchd, right after Welcome: all unfinished or unacknowledged attempts in its journal, and all that it
    has of jobs from before the store was restored.

    `highest_epoch`: the highest that the agent has heard of.
    """

    type: Literal["register"] = "register"
    boot_id: str
    journal_id: str
    highest_epoch: EpochPair | None = None
    offer: NodeOffer
    attempts: list[AttemptReport] = []
    fabric_address: str = ""
    """Where other nodes reach this one's exports; where it is not said, it is where the session comes from."""
    knows: list[str] = Field(default=[], max_length=64)
    """Frames that came to be after the first release, which this agent takes: `console`."""


class Registered(Frame):
    """mbatchd → agent. `beat_seconds`: how often to beat."""

    type: Literal["registered"] = "registered"
    epoch: EpochPair
    beat_seconds: float


class Dispatch(Frame):
    type: Literal["dispatch"] = "dispatch"
    epoch: EpochPair
    attempts: list[Attempt]


class Stop(Frame):
    """Signal an attempt's whole group. With `grace_seconds` > 0 and a signal that asks to end, KILL follows."""

    type: Literal["stop"] = "stop"
    epoch: EpochPair
    id: str
    signal: int
    grace_seconds: float = 0.0
    reason: str = "stop"


class Report(Frame):
    type: Literal["report"] = "report"
    seq: int
    attempts: list[AttemptReport]


class ReportAck(Frame):
    """The report is durable; the agent may forget what it said."""

    type: Literal["report_ack"] = "report_ack"
    epoch: EpochPair
    seq: int


class HostHere(Frame):
    """A logical host that is anchored on this node, as its enter program needs it. `devices`: ids per kind.

    Of `memory_bytes`, `far_memory_bytes` are of other nodes. `gpu_nodes`: its GPUs on other nodes, by node;
    `special_nodes` its special devices there, by kind and node.
    """

    name: str
    version: int
    cpu_milli: int
    memory_bytes: int
    far_memory_bytes: int = 0
    gpu_nodes: dict[str, list[str]] = {}
    special_nodes: dict[str, dict[str, list[str]]] = {}
    devices: dict[str, list[str]] = {}
    pools: list[str] = []


class HostsHere(Frame):
    """mbatchd → agent: all logical hosts anchored on this node, each time that changes and after Registered."""

    type: Literal["hosts_here"] = "hosts_here"
    epoch: EpochPair
    hosts: list[HostHere]


class HostsApplied(Frame):
    """Agent → mbatchd: these hosts, by name and version, can be entered on this node now; no others."""

    type: Literal["hosts_applied"] = "hosts_applied"
    versions: dict[str, int]


class PartOrder(Frame):
    """One thing that a node is to have, or not to have any more, for a logical host.

    role      on          what
    export    provider    `amount` bytes of `kind` (storage, memory) as an NBD export for `peer` alone
    disk      anchor      storage, from the export at `address`:`port`, or of this node where `address` is empty
    swap      anchor      far memory: the export at `address`:`port`, as swap
    circuit   both ends   `amount` bits a second to `peer`
    vm        anchor      the host itself, as a virtual machine (`vm`)

    The same `part`, `role` and `incarnation` is the same thing, however often it is ordered. A higher `version` may
    change its amount. `secret` opens an export that is encrypted (TLS-PSK, hexadecimal).

    A disk that `mirrors` another part of its host takes that one's place, under the same device, while it is in use:
    it is ready once it holds all that the other one holds, and from then on both get whatever is written. Whichever
    of the two is ordered absent then, the device goes on with the other one.
    """

    part: str
    role: Literal["export", "disk", "swap", "circuit", "vm"]
    host: str
    incarnation: int
    version: int = 1
    want: Literal["present", "absent"] = "present"
    kind: str = ""
    amount: int = 0
    peer: str = ""
    peer_address: str = ""
    address: str = ""
    port: int = 0
    tls: bool = False
    secret: str = Field(default="", repr=False)
    iops: int = 0
    mirrors: str = ""
    vm: dict[str, Any] = {}


class PartsHere(Frame):
    """mbatchd → agent: all that is ordered of this node, each time that changes and after Registered.

    What it has and is not named is left as it is: only an order of `absent` takes anything away.
    """

    type: Literal["parts_here"] = "parts_here"
    epoch: EpochPair
    orders: list[PartOrder]


class PartState(Frame):
    """How far the node is with one thing. `lost`: it was ready, and broke.

    An export that is ready says its `port` and, where it is encrypted, its `secret`; a disk its `device` and `path`.
    """

    part: str
    role: str
    host: str
    incarnation: int
    version: int = 1
    state: Literal["ready", "failed", "lost", "gone"]
    reason: str = ""
    address: str = ""
    port: int = 0
    secret: str = Field(default="", repr=False)
    device: str = ""
    path: str = ""


class PartsApplied(Frame):
    """Agent → mbatchd: all that this node has, or was told to have and has not; each time that changes."""

    type: Literal["parts_applied"] = "parts_applied"
    parts: list[PartState]


class HostAsk(Frame):
    """From inside a logical host, by way of its anchor's agent: let the host have so much in all of these kinds.

    Local, `attempt` is who asks, or, for root alone, `host` is what is asked of. To mbatchd the agent says what it
    has checked. No amounts: how much may it have?
    """

    type: Literal["host_ask"] = "host_ask"
    seq: int = 0
    attempt: str = ""
    host: str = ""
    amounts: dict[str, int] = {}


class HostAnswer(Frame):
    """What became of a HostAsk: `amounts` is what the host has now, `least` and `most` what it may ask for.

    `message` is why it is not as was asked; `code` is stable.
    """

    type: Literal["host_answer"] = "host_answer"
    epoch: EpochPair | None = None
    seq: int = 0
    code: str = ""
    message: str = ""
    host: str = ""
    amounts: dict[str, int] = {}
    least: dict[str, int] = {}
    most: dict[str, int] = {}


class Read(Frame):
    """mbatchd → agent: bytes of an attempt's output, until it ends if `follow`. `stream_id` names the answer."""

    type: Literal["read"] = "read"
    epoch: EpochPair
    stream_id: int
    attempt: str
    stream: Literal["stdout", "stderr"]
    offset: int = 0
    follow: bool = False


class CancelRead(Frame):
    type: Literal["cancel_read"] = "cancel_read"
    epoch: EpochPair
    stream_id: int


class Console(Frame):
    """mbatchd → agent: be at the serial console of a logical host's machine until CancelRead. An empty Output says
    that it is reached; what the machine says follows. Only to an agent that knows `console`."""

    type: Literal["console"] = "console"
    epoch: EpochPair
    stream_id: int
    host: str


class Typed(Frame):
    """mbatchd → agent: base64 of what was typed at a console."""

    type: Literal["typed"] = "typed"
    epoch: EpochPair
    stream_id: int
    data_base64: str


class Output(Frame):
    """Agent → mbatchd: base64 of at most 64 KiB. `ended` closes the stream; `error` says why too early."""

    type: Literal["output"] = "output"
    stream_id: int
    offset: int
    data_base64: str = ""
    ended: bool = False
    error: str = ""


AnyFrame = Annotated[
    Hello | Welcome | Refused | Bye | Beat | BeatAck | WhoLeads | Leader | Deadline | Ready | Resign
    | AskToken | Exchange | Granted | AskOffer | Offer | AskMembers | Members | Register | Registered
    | Dispatch | Stop | Report | ReportAck | HostsHere | HostsApplied
    | PartsHere | PartsApplied | HostAsk | HostAnswer | Read | CancelRead | Output | Console | Typed,
    Field(discriminator="type"),
]  # fmt: skip
FRAMES: TypeAdapter[AnyFrame] = TypeAdapter(AnyFrame)
