"""What there is: the cluster's state, nodes, pools, queues and logical hosts; and who leads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

from lavalite import __version__
from lavalite.api.client import Client
from lavalite.api.models import (
    Amounts,
    Drain,
    Host,
    HostCircuit,
    HostPart,
    Node,
    Pool,
    Queue,
    QuotaUse,
    ShareUse,
    Status,
)
from lavalite.base.errors import InputError
from lavalite.cli.connect import Place, at_place
from lavalite.cli.output import (
    Column,
    Format,
    Item,
    Output,
    Watch,
    fields,
    machine,
    moment,
    progress,
    say,
    show_lists,
    working,
)
from lavalite.model.amounts import approximate_bytes, format_amount, format_duration, parse_duration
from lavalite.model.resources import CPU, GPU, MEMORY, NETWORK, STORAGE, is_special, special_fault

Named = TypeVar("Named", bound=BaseModel)
NEVER = "never"
"""As a deadline: none."""
Names = Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Only these.", show_default=False)]


def amount_text(kind: str, amount: int) -> str:
    """Sizes that machines report are odd: four digits of them are enough for eyes."""
    return approximate_bytes(amount) if kind in (MEMORY, STORAGE) else format_amount(kind, amount)


def free_text(resources: dict[str, Amounts], kind: str) -> str:
    """`12/16`: free of what there is; nothing where there is none of the kind."""
    found = resources.get(kind)
    return f"{amount_text(kind, found.free)}/{amount_text(kind, found.capacity)}" if found and found.capacity else ""


def floating_text(pool: Pool) -> str:
    resources = pool.resources
    kinds = sorted(set(resources) & set(pool.spec.get("floating") or ()))
    return " ".join(f"{kind} {resources[kind].free}/{resources[kind].capacity}" for kind in kinds)


def part_text(host: Host, kind: str) -> str:
    """`128GiB + 128GiB far`, `2TiB at n03`, `4 A100`: what is at the anchor, and what is from elsewhere."""
    near = [p for p in host.parts if p.kind == kind and p.provider == host.anchor]
    texts = [format_amount(kind, sum(p.amount for p in near))] if near else []
    texts += [_far_text(kind, p) for p in host.parts if p.kind == kind and p.provider != host.anchor]
    if not texts and kind in host.resources:
        return format_amount(kind, host.resources[kind].capacity)
    return " + ".join(texts)


def _far_text(kind: str, part: HostPart) -> str:
    amount = format_amount(kind, part.amount)
    return f"{amount} far" if kind == MEMORY else f"{amount} at {part.provider}"


def gpu_text(host: Host) -> str:
    """`4 A100` where the definition names the model."""
    asked = host.spec.get("gpu")
    model = str(asked.get("model", "")) if isinstance(asked, dict) else ""
    text = part_text(host, GPU)
    return f"{text} {model}".strip() if text else ""


def drain_text(drain: Drain | None) -> str:
    """`new disk, until 2026-05-01 14:05:00`; nothing of a node that is not drained."""
    until = f"until {moment(drain.deadline_at)}" if drain and drain.deadline_at is not None else ""
    return ", ".join(filter(None, [drain.reason or "yes", until])) if drain else ""


NODE_COLUMNS: list[Column[Node]] = [
    Column("NODE", lambda n: n.name),
    Column("STATE", lambda n: n.state),
    Column("CPU", lambda n: free_text(n.resources, CPU)),
    Column("MEMORY", lambda n: free_text(n.resources, MEMORY)),
    Column("GPU", lambda n: " ".join(filter(None, [free_text(n.resources, GPU), *n.gpu_models]))),
    Column("STORAGE", lambda n: free_text(n.resources, STORAGE)),
    Column("TASKS", lambda n: n.tasks),
    Column("HOSTS", lambda n: " ".join(n.hosts)),
    Column("NETWORK", lambda n: free_text(n.resources, NETWORK), wide=True),
    Column("BEAT", lambda n: f"{n.beat_age_seconds:.1f}s" if n.beat_age_seconds is not None else "", wide=True),
    Column("TRIP", lambda n: f"{n.round_trip_ms:.1f}ms" if n.round_trip_ms is not None else "", wide=True),
    Column("LOST", lambda n: n.lost_beats, wide=True),
    Column("VERSION", lambda n: n.software_version, wide=True),
    Column("DRAIN", lambda n: drain_text(n.drain), wide=True),
    Column("LABELS", lambda n: " ".join(f"{k}={','.join(v)}" for k, v in sorted(n.labels.items())), wide=True),
]

POOL_COLUMNS: list[Column[Pool]] = [
    Column("POOL", lambda p: p.name),
    Column("KINDS", lambda p: " ".join(p.kinds)),
    Column("DEFAULT", lambda p: "yes" if p.default else ""),
    Column("NODES", lambda p: len(p.nodes) or ""),
    Column("CPU", lambda p: free_text(p.resources, CPU)),
    Column("MEMORY", lambda p: free_text(p.resources, MEMORY)),
    Column("GPU", lambda p: free_text(p.resources, GPU)),
    Column("STORAGE", lambda p: free_text(p.resources, STORAGE)),
    Column("FLOATING", floating_text),
    Column("QUOTA", lambda p: ", ".join(map(quota_text, p.quota)), wide=True),
    Column("MEMBERS", lambda p: " ".join(p.nodes), wide=True),
]

QUEUE_COLUMNS: list[Column[Queue]] = [
    Column("QUEUE", lambda q: q.name),
    Column("PRIORITY", lambda q: q.priority),
    Column("POLICY", lambda q: q.policy),
    Column("DEFAULT", lambda q: "yes" if q.default else ""),
    Column("PENDING", lambda q: q.pending),
    Column("RUNNING", lambda q: q.running),
    Column("LIMITS", lambda q: _mapping_text(q.spec.get("limits")), wide=True),
    Column("PREEMPTS", lambda q: preemption_text(q.spec.get("preemption")), wide=True),
    Column("SHARES", lambda q: ", ".join(map(share_text, (s for s in q.shares if not s.user))), wide=True),
]


def preemption_text(rule: dict[str, Any] | None) -> str:
    """`requeue low, batch below 20`: how a queue's jobs preempt, and whom."""
    if not rule:
        return ""
    below = f"below {rule['below']}" if rule.get("below") is not None else ""
    return " ".join(filter(None, [rule["mode"], ", ".join(rule.get("queues") or ()), below]))


SHARE_COLUMNS: list[Column[ShareUse]] = [
    Column("QUEUE", lambda s: s.queue),
    Column("GROUP", lambda s: s.group),
    Column("USER", lambda s: s.user),
    Column("SHARE", lambda s: s.share),
    Column("ENTITLED", lambda s: percent_text(s.entitled_permille)),
    Column("USED", lambda s: percent_text(s.used_permille)),
    Column("CORE-HOURS", lambda s: f"{s.used_core_seconds / 3600:.1f}"),
    Column("CORES", lambda s: format_amount(CPU, s.held_milli)),
    Column("STANDING", lambda s: s.standing, wide=True),
]

QUOTA_COLUMNS: list[Column[QuotaUse]] = [
    Column("POOL", lambda q: q.pool),
    Column("GROUP", lambda q: q.group),
    Column("KIND", lambda q: q.kind),
    Column("NOMINAL", lambda q: amount_text(q.kind, q.nominal)),
    Column("BORROW", lambda q: "any" if q.borrow is None else amount_text(q.kind, q.borrow)),
    Column("LEND", lambda q: "any" if q.lend is None else amount_text(q.kind, q.lend)),
    Column("USED", lambda q: amount_text(q.kind, q.used)),
    Column("BORROWED", lambda q: amount_text(q.kind, q.borrowed)),
    Column("LEFT", lambda q: amount_text(q.kind, q.left)),
]


def percent_text(permille: int) -> str:
    return f"{permille / 10:.1f}%"


def share_text(found: ShareUse) -> str:
    """`research 3: 61.2% of 75.0%`: what it has used of what it is entitled to."""
    used, entitled = percent_text(found.used_permille), percent_text(found.entitled_permille)
    return f"{found.group} {found.share}: {used} of {entitled}"


def quota_text(found: QuotaUse) -> str:
    """`research 6/8 gpu`: used of its own."""
    used, nominal = amount_text(found.kind, found.used), amount_text(found.kind, found.nominal)
    return f"{found.group} {used}/{nominal} {found.kind}"


HOST_COLUMNS: list[Column[Host]] = [
    Column("HOST", lambda h: h.name),
    Column("STATE", lambda h: h.state),
    Column("CPU", lambda h: part_text(h, CPU)),
    Column("MEMORY", lambda h: part_text(h, MEMORY)),
    Column("GPU", gpu_text),
    Column("STORAGE", lambda h: part_text(h, STORAGE)),
    Column("ANCHOR", lambda h: h.anchor),
    Column("FROM", lambda h: " ".join(dict.fromkeys(p.provider for p in h.parts))),
    Column("NETWORK", lambda h: part_text(h, NETWORK), wide=True),
    Column("USED", lambda h: _used_text(h), wide=True),
    Column("POOLS", lambda h: " ".join(h.pools), wide=True),
    Column("CIRCUITS", lambda h: ", ".join(map(circuit_text, h.circuits)), wide=True),
    Column("REASON", lambda h: reason_text(h), wide=True),
]


def circuit_text(circuit: HostCircuit) -> str:
    """`n03 10Gbit/s`: to where, and how much is reserved on every link to there."""
    return f"{circuit.provider} {format_amount(NETWORK, circuit.bits_per_second)}"


def reason_text(host: Host) -> str:
    """`degraded: …`, `drained`, `export: …`: what people should know beside its state."""
    words = ["degraded"] if host.degraded else []
    words += ["drained"] if host.drained else []
    words += [f"step {host.step}"] if host.step else []
    if host.reserved_until is not None:
        words.append(f"until {moment(host.reserved_until)}")
    return ": ".join(filter(None, [", ".join(words), host.reason]))


def _mapping_text(value: object) -> str:
    return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""


def _used_text(host: Host) -> str:
    held = [(kind, a.committed) for kind, a in host.resources.items() if a.committed]
    return ", ".join(format_amount(kind, amount, named=True) for kind, amount in held)


def node_columns(nodes: Iterable[Node]) -> list[Column[Node]]:
    """Each special kind that any has is a column behind STORAGE."""
    kinds = special_kinds(node.resources for node in nodes)
    return _with_kinds(NODE_COLUMNS, kinds, lambda n, kind: free_text(n.resources, kind))


def pool_columns(pools: Iterable[Pool]) -> list[Column[Pool]]:
    """As `node_columns`."""
    floating = [set(pool.spec.get("floating") or ()) for pool in pools]
    kinds = special_kinds(pool.resources.keys() - less for pool, less in zip(pools, floating, strict=True))
    return _with_kinds(POOL_COLUMNS, kinds, lambda p, kind: free_text(p.resources, kind))


def host_columns(hosts: Iterable[Host]) -> list[Column[Host]]:
    """As `node_columns`; and REASON is shown as soon as there is one."""
    kinds = special_kinds([part.kind for part in host.parts] for host in hosts)
    columns = _with_kinds(HOST_COLUMNS, kinds, part_text)
    if not any(map(reason_text, hosts)):
        return columns
    last = columns[-1]
    return [*columns[:-1], Column(last.header, last.text)]


def special_kinds(found: Iterable[Iterable[str]]) -> list[str]:
    return sorted({kind for kinds in found for kind in kinds if is_special(kind) and not special_fault(kind)})


def _with_kinds(
    columns: list[Column[Item]], kinds: list[str], text: Callable[[Item, str], str]
) -> list[Column[Item]]:
    at = 1 + next(number for number, column in enumerate(columns) if column.header == STORAGE.upper())
    return [*columns[:at], *(Column(kind.upper(), _of_kind(text, kind)) for kind in kinds), *columns[at:]]


def _of_kind(text: Callable[[Item, str], str], kind: str) -> Callable[[Item], str]:
    return lambda item: text(item, kind)


def chosen(names: list[str] | None, one: Callable[[str], Named], all_: Callable[[], Iterable[Named]]) -> list[Named]:
    return [one(name) for name in names] if names else list(all_())


@at_place
def status(place: Place, output: Output = Format.TABLE) -> None:
    """Say who leads, and what there is."""
    with place.client() as client:
        found = working(client.status)
    say(status_text(found) if output in (Format.TABLE, Format.WIDE) else machine(found, output))


def submits_text(found: Status) -> str:
    """Why they are refused; else how near that is, by what is nearest."""
    if found.refuses:
        return f"refused: {found.refuses}"
    told = [f"{room.what} {room.used * 100 // room.most} %" for room in found.headroom if room.most]
    return f"let in; of the most that may be: {', '.join(told)}" if told else ""


def status_text(found: Status) -> str:
    def counts(by_state: dict[str, int]) -> str:
        return ", ".join(f"{count} {state}" for state, count in by_state.items() if count) or "none"

    up = format_duration(max(0, int(found.now - found.started_at)))
    size = found.store.get("size_bytes")
    store = str(found.store.get("kind", "")) + (f", {approximate_bytes(size)}" if isinstance(size, int) else "")
    return fields(
        [
            ("cluster", found.cluster),
            ("leader", f"{found.node} since {moment(found.started_at)} ({up})"),
            ("epoch", ".".join(map(str, found.epoch)) if found.epoch else ""),
            ("version", found.version),
            ("lim", found.lim),
            ("mbatchd", found.mbatchd),
            ("store", store),
            ("nodes", counts(found.nodes)),
            ("jobs", counts(found.jobs)),
            ("tasks", counts(found.tasks)),
            ("commitments", found.commitments),
            ("submits", submits_text(found)),
            ("api", found.api_url),
        ]
    )


@at_place
def nodes(place: Place, names: Names = None, output: Output = Format.TABLE, watch: Watch = False) -> None:
    """List nodes: what is free of what each has."""
    with place.client() as client:
        show_lists(lambda: chosen(names, client.node, client.nodes), node_columns, output, watch)


@at_place
def pools(place: Place, names: Names = None, output: Output = Format.TABLE, watch: Watch = False) -> None:
    """List pools."""
    with place.client() as client:
        show_lists(lambda: chosen(names, client.pool, client.pools), pool_columns, output, watch)


@at_place
def queues(place: Place, names: Names = None, output: Output = Format.TABLE, watch: Watch = False) -> None:
    """List queues."""
    with place.client() as client:
        show_lists(lambda: chosen(names, client.queue, client.queues), QUEUE_COLUMNS, output, watch)


@at_place
def shares(place: Place, names: Names = None, output: Output = Format.TABLE, watch: Watch = False) -> None:
    """List shares of queues: what groups and users are entitled to, and have used."""

    def read(client: Client) -> Iterable[ShareUse]:
        queues = names or [queue.name for queue in client.queues()]
        return [share for name in queues for share in client.queue(name).shares]

    with place.client() as client:
        show_lists(lambda: read(client), SHARE_COLUMNS, output, watch)


@at_place
def quotas(place: Place, names: Names = None, output: Output = Format.TABLE, watch: Watch = False) -> None:
    """List quotas of pools: what groups are sure of, borrow and lend, and what they hold."""
    with place.client() as client:
        show_lists(
            lambda: [quota for pool in chosen(names, client.pool, client.pools) for quota in pool.quota],
            QUOTA_COLUMNS,
            output,
            watch,
        )


@at_place
def hosts(place: Place, names: Names = None, output: Output = Format.TABLE, watch: Watch = False) -> None:
    """List logical hosts, and where their parts are from."""
    with place.client() as client:
        show_lists(lambda: chosen(names, client.host, client.hosts), host_columns, output, watch)


@at_place
def drain(
    place: Place,
    names: Annotated[list[str], typer.Argument(metavar="NODE…")],
    reason: Annotated[str | None, typer.Option(help="Why, for whoever looks.", show_default=False)] = None,
    deadline: Annotated[
        str,
        typer.Option(
            metavar="30m",
            help="End what still runs there after so long; `never` takes a deadline away.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Place nothing more on nodes; what runs there goes on, until the deadline where one is given.

    Then rerunnable tasks go back into their queue, and all others end. Asked for again, a deadline does not move.
    """
    never = deadline == NEVER
    seconds = _seconds(deadline) if deadline and not never else None
    with place.client() as client:
        for name in names:
            say(drained_text(client.drain(name, reason, deadline_seconds=seconds, no_deadline=never)))


def _seconds(deadline: str) -> int:
    try:
        return parse_duration(deadline)
    except InputError as error:
        raise error.at("--deadline") from None


def drained_text(node: Node) -> str:
    """`node n1: drained, 3 tasks run there until 14:05`."""
    until = f" until {moment(node.drain.deadline_at)}" if node.drain and node.drain.deadline_at is not None else ""
    work = f", {node.tasks} task{'s'[: node.tasks != 1]} there{until}" if node.tasks or until else ""
    return f"node {node.name}: {node.state}{work}"


@at_place
def undrain(place: Place, names: Annotated[list[str], typer.Argument(metavar="NODE…")]) -> None:
    """Place work on drained nodes again."""
    with place.client() as client:
        for name in names:
            say(f"node {name}: {client.undrain(name).state}")


@at_place
def drain_host(place: Place, names: Annotated[list[str], typer.Argument(metavar="HOST…")]) -> None:
    """Start nothing new on logical hosts; they stay composed, and what runs there goes on."""
    with place.client() as client:
        for name in names:
            found = client.drain_host(name)
            say(f"host {name}: {found.state}, {'drained' if found.drained else 'not drained'}")


@at_place
def resume_host(place: Place, names: Annotated[list[str], typer.Argument(metavar="HOST…")]) -> None:
    """Start work on drained hosts again."""
    with place.client() as client:
        for name in names:
            say(f"host {name}: {client.resume_host(name).state}")


@at_place
def apply_host(place: Place, names: Annotated[list[str], typer.Argument(metavar="HOST…")]) -> None:
    """Compose hosts that are reserved, and try again at once those that could not be composed."""
    with place.client() as client:
        for name in names:
            say(f"host {name}: {client.apply_host(name).state}")


@at_place
def forget(place: Place, names: Annotated[list[str], typer.Argument(metavar="NODE…")]) -> None:
    """Forget nodes that were taken down for good. One that comes back is a node again."""
    with place.client() as client:
        for name in names:
            client.forget(name)
            say(f"node {name}: forgotten")


@at_place
def label(
    place: Place,
    name: Annotated[str, typer.Argument(metavar="NODE")],
    changes: Annotated[list[str], typer.Argument(metavar="LABEL=VALUE…|LABEL-…")],
) -> None:
    """Give labels to a node, over those that it tells itself, and take them away again.

    rack=r1 sets a label, disk=ssd,nvme one of two values, and rack- takes away what was set.
    """
    with place.client() as client:
        node = client.label(name, dict(map(label_change, changes)))
    given = " ".join(f"{label}={','.join(values)}" for label, values in sorted(node.operator_labels.items()))
    say(f"node {name}: {given or 'no labels but its own'}")


def label_change(text: str) -> tuple[str, list[str] | None]:
    """`rack=r1` → (rack, [r1]); `rack-` → (rack, None). Raises InputError."""
    name, equals, values = text.partition("=")
    if equals:
        return name, values.split(",")
    if not text.endswith("-"):
        raise InputError(f"{text} is no change of a label", hint="Write rack=r1, or rack- to take it away.")
    return text[:-1], None


@at_place
def resign(place: Place) -> None:
    """Ask the LIM of this machine to hand leadership to another candidate."""
    from lavalite.providers import lim_socket

    if place.api:
        hint = "Run it on the leading node, without --api and LAVALITE_API."
        raise InputError("leadership is handed over on the leading node", field="--api", hint=hint)
    with progress("handing over"):
        answer = lim_socket.resign(place.lim_socket)
    say(answer or "handed over")


def version() -> None:
    """Print the version."""
    say(f"lavalite {__version__}")
