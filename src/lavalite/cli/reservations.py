"""Reservations: list them, make one, end one."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

import typer

from lavalite.api.models import Reservation, ReservationPut
from lavalite.base.errors import InputError
from lavalite.cli.cluster import Names, chosen
from lavalite.cli.connect import Place, at_place
from lavalite.cli.output import Column, Format, Output, Watch, moment, say, show_lists
from lavalite.model.amounts import format_amount, parse_bytes, parse_cpu, parse_duration, parse_gpu

_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


def _amounts(amounts: dict[str, int]) -> str:
    return ", ".join(format_amount(kind, amount, named=True) for kind, amount in sorted(amounts.items())) or "–"


COLUMNS: list[Column[Reservation]] = [
    Column("RESERVATION", lambda r: r.name),
    Column("STATE", lambda r: r.state),
    Column("EACH", lambda r: _amounts(r.amounts)),
    Column("NODES", lambda r: " ".join(r.nodes)),
    Column("USED", lambda r: _amounts(r.used)),
    Column("START", lambda r: moment(r.start)),
    Column("END", lambda r: moment(r.end)),
    Column("EVERY", lambda r: f"{r.every} ({r.zone})" if r.every else ""),
    Column("USERS", lambda r: " ".join(dict.fromkeys([r.owner, *r.users]))),
    Column("POOL", lambda r: r.pool or "–", wide=True),
]


@at_place
def reservations(place: Place, names: Names = None, output: Output = Format.TABLE, watch: Watch = False) -> None:
    """List reservations: what is kept for whom, and until when."""
    with place.client() as client:
        show_lists(lambda: chosen(names, client.reservation, client.reservations), COLUMNS, output, watch)


@at_place
def reserve(
    place: Place,
    name: Annotated[str, typer.Argument(help="What to call it; jobs name it by --reservation.")],
    duration: Annotated[str, typer.Option("--for", metavar="2h", help="For how long.")],
    cpu: Annotated[str, typer.Option(help="Cores on each node.")] = "",
    memory: Annotated[str, typer.Option(help="Memory on each node.")] = "",
    gpu: Annotated[str, typer.Option(help="Whole GPUs on each node.")] = "",
    storage: Annotated[str, typer.Option(help="Local storage on each node.")] = "",
    nodes: Annotated[int, typer.Option(help="On how many nodes.", min=1)] = 1,
    pool: Annotated[str, typer.Option(help="Only nodes of this pool.")] = "",
    start: Annotated[
        str, typer.Option(metavar="2026-12-24T08:00", help="From when on, as here; else from now on.")
    ] = "",
    user: Annotated[list[str] | None, typer.Option(metavar="USER", help="Who may use it, beside yourself.")] = None,
    timeout: Annotated[str, typer.Option(metavar="15m", help="It ends when unused for so long.")] = "",
    every: Annotated[
        str, typer.Option(metavar="day|weekday|week", help="Again at the same time of day, so often.")
    ] = "",
    zone: Annotated[str, typer.Option(metavar="Europe/Berlin", help="By whose clock it recurs; else UTC.")] = "",
    until: Annotated[
        str, typer.Option(metavar="2027-01-31T00:00", help="It recurs before then; else for a year.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be kept, and where.")] = False,
) -> None:
    """Keep some of some nodes for a time. What runs past its start is placed beside it."""
    fields: dict[str, Any] = {
        "cpu_milli": _read(parse_cpu, cpu, "--cpu"),
        "memory_bytes": _read(parse_bytes, memory, "--memory"),
        "gpu_milli": _read(parse_gpu, gpu, "--gpu"),
        "storage_bytes": _read(parse_bytes, storage, "--storage"),
        "count": nodes,
        "pool": pool,
        "start": _moment(start) if start else None,
        "duration_seconds": _read(parse_duration, duration, "--for"),
        "users": user or [],
        "timeout_seconds": _read(parse_duration, timeout, "--timeout") or None,
        "every": every,
        "zone": zone,
        "until": _moment(until, "--until") if until else None,
    }
    with place.client() as client:
        result = client.reserve(name, ReservationPut.model_construct(**fields), dry_run=dry_run)
    made = result.reservation
    verb = "would be kept" if dry_run else "kept" if result.changed else "kept already"
    span = f"{moment(made.start)} to {moment(made.end)}" + (f" and every {made.every}" if made.every else "")
    say(f"reservation {made.name}: {verb} on {' '.join(made.nodes)}, {span}: {_amounts(made.amounts)} each")


@at_place
def unreserve(place: Place, names: Annotated[list[str], typer.Argument(metavar="NAME…")]) -> None:
    """End reservations. What their tasks hold they go on holding, to their end."""
    with place.client() as client:
        for name in names:
            client.unreserve(name)
            say(f"reservation {name}: ended")


def _read(parse: Any, text: str, option: str) -> int:
    try:
        return int(parse(text)) if text else 0
    except InputError as error:
        raise error.at(option) from None


def _moment(text: str, option: str = "--start") -> float:
    """Seconds since the Unix epoch, of a time as it is written here, or of such seconds. Raises InputError."""
    try:
        return float(text) if _SECONDS.fullmatch(text) else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        hint = "Write it as 2026-12-24T08:00."
        raise InputError(f"{text[:40]} is no time", field=option, hint=hint) from None
