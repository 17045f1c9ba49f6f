"""`lavalite simulate`: a scenario in virtual time, as lines, a table, records or pictures. Asks no daemon."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lavalite.base.clock import SystemClock
from lavalite.base.errors import InputError
from lavalite.cli.output import aligned, fields, note, plain, say
from lavalite.model.amounts import format_amount, parse_duration
from lavalite.simulate.live import run_live
from lavalite.simulate.plot import check_plot, plot_run, plot_sweep
from lavalite.simulate.report import NodeNow, Report, Snapshot
from lavalite.simulate.run import Simulation
from lavalite.simulate.scenario import read_scenario
from lavalite.simulate.story import Line, clock
from lavalite.simulate.sweep import Swept, parse_setting, sweep

ENDS = {
    "done": "all is over",
    "until": "its time was up, what follows is of a part",
    "stalled": "what waits can never start, what follows is of a part",
    "stopped": "it was stopped, what follows is of a part",
}


def simulate(
    file: Annotated[Path, typer.Argument(metavar="SCENARIO.yml", help="What is there, comes and happens.")],
    policy: Annotated[str, typer.Option(help="The placement policy of every queue.")] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Put this in the scenario: seed=2, nodes=100."),
    ] = None,
    swept: Annotated[
        list[str] | None,
        typer.Option("--sweep", metavar="NAME=A,B", help="Run it with each of them; with several, with each pair."),
    ] = None,
    until: Annotated[str, typer.Option(metavar="2h", help="End it then at the latest.")] = "",
    events: Annotated[bool | None, typer.Option("--events/--no-events", help="Tell of each task, or not.")] = None,
    live: Annotated[bool, typer.Option("--live", help="At the pace of the clock, until Ctrl-C.")] = False,
    speed: Annotated[float, typer.Option(help="With --live: so many times as fast.", min=0.001)] = 1.0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: a .png or .svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A record a line.")] = False,
) -> int:
    """Run a scenario in virtual time, by the scheduler's own code."""
    settings: dict[str, Any] = {"policy": policy} if policy else {}
    for text in set_ or []:
        name, values = parse_setting(text, "--set")
        settings[name] = values[0] if len(values) == 1 else values
    limit = float(_duration(until)) if until else None
    if plot is not None:
        check_plot(plot)
    if swept:
        return _sweep(file, settings, [parse_setting(text, "--sweep") for text in swept], limit, plot, as_json)
    scenario = read_scenario(file, settings)
    if events is not None:
        scenario.top.events = events
    if limit is None and scenario.top.until is not None:
        limit = float(scenario.top.until)
    if limit is None and scenario.endless and not live:
        raise InputError(f"{file} has no end", field="--until", hint="Give --until 2h, or write until: 2h in it.")
    out = _Out(as_json)
    if live and sys.stdout.isatty() and not as_json:
        report = _live_view(scenario, speed, limit)
    else:
        run = Simulation(scenario, out.line, out.snapshot)
        report = run_live(run, SystemClock(), speed=speed, until=limit) if live else run.run(limit)
    out.report(report)
    if plot is not None:
        plot_run(report, plot)
        note(f"drawn: {plot}")
    return 0


def _duration(text: str) -> int:
    try:
        return parse_duration(text)
    except InputError as error:
        raise error.at("--until") from None


class _Out:
    """Lines, or records."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def line(self, line: Line) -> None:
        if self._as_json:
            _record({"type": "event", "at": line.at, "who": line.who, "text": line.text})
        else:
            say(plain(str(line)))

    def snapshot(self, snapshot: Snapshot) -> None:
        if self._as_json:
            _record(snapshot.record())
        else:
            say(snapshot_text(snapshot))

    def report(self, report: Report) -> None:
        if self._as_json:
            _record(report.record())
        else:
            say(report_text(report))


def _record(record: dict[str, Any]) -> None:
    say(json.dumps(record, ensure_ascii=False))


def _live_view(scenario: Any, speed: float, limit: float | None) -> Report:
    """The newest snapshot and the last lines, drawn over and over."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    lines: list[str] = []
    shown = ""
    with Live(console=Console(), auto_refresh=False, screen=False) as view:

        def draw() -> None:
            view.update(Text("\n".join([shown, *lines[-12:]])), refresh=True)

        def add(line: Line) -> None:
            lines.append(plain(str(line)))
            del lines[:-12]
            draw()

        def show(snapshot: Snapshot) -> None:
            nonlocal shown
            shown = snapshot_text(snapshot)
            draw()

        return run_live(Simulation(scenario, add, show), SystemClock(), speed=speed, until=limit)


def snapshot_text(snapshot: Snapshot) -> str:
    """The cluster at a time: jobs by state, use, and the first nodes with health and last beat."""
    tasks = ", ".join(f"{count} {state}" for state, count in snapshot.tasks.items())
    nodes = ", ".join(f"{count} {state}" for state, count in snapshot.nodes.items()) or "none"
    use = ", ".join(f"{kind} {part:.0%}" for kind, part in snapshot.use.items()) or "nothing"
    lines = [f"-- {clock(snapshot.at)}  tasks: {tasks} | nodes: {nodes} | committed: {use}"]
    rows = [["", "NODE", "STATE", *_header(snapshot.each), "TASKS", "LAST BEAT"]]
    rows += [["  ", *_cells(node, snapshot.each)] for node in snapshot.each]
    lines += aligned(rows).splitlines() if snapshot.each else []
    return "\n".join(lines)


def _kinds(nodes: Sequence[NodeNow]) -> list[str]:
    return list(dict.fromkeys(kind for node in nodes for kind in node.capacity))


def _header(nodes: Sequence[NodeNow]) -> list[str]:
    return [kind.upper() for kind in _kinds(nodes)]


def _cells(node: NodeNow, nodes: Sequence[NodeNow]) -> list[str]:
    used = [
        f"{format_amount(kind, node.committed[kind])}/{format_amount(kind, node.capacity[kind])}"
        if kind in node.capacity
        else "–"
        for kind in _kinds(nodes)
    ]
    beat = "–" if node.beat_age_seconds is None else f"{node.beat_age_seconds}s ago"
    return [plain(node.name), node.state, *used, str(node.tasks), beat]


def report_text(report: Report) -> str:
    """How it went, a field a line."""
    tasks = ", ".join(f"{count} {state}" for state, count in report.tasks.items())
    pairs: list[tuple[str, object]] = [
        ("scenario", report.name),
        ("ended", f"after {clock(report.at)}: {ENDS[report.ended]}"),
        ("tasks", tasks + (f"; {report.refused_jobs} jobs refused" if report.refused_jobs else "")),
        ("makespan", clock(report.makespan)),
        ("wait", _spread(report.wait, " s")),
        ("slowdown", _spread(report.slowdown, "")),
        ("use", ", ".join(f"{kind} {part:.1%}" for kind, part in report.use.items())),
        ("fragmented", None if report.fragmented is None else f"{report.fragmented:.1%} of what is free of GPUs"),
        ("fairness", None if report.fairness is None else f"{report.fairness:.3f} (Jain, between users)"),
        ("placements", f"{report.placements}"),
        ("evictions", f"{report.evictions}, preemptions {report.preemptions}, retries {report.retries}"),
        ("waiting", "; ".join(report.unfinished)),
    ]
    return fields([(name, value) for name, value in pairs if value])


def _spread(values: dict[str, float | None], unit: str) -> str:
    return ", ".join(f"{name} {value:.1f}{unit}" for name, value in values.items() if value is not None)


# --- sweeps ---------------------------------------------------------------------------------------------------------

_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("ENDED", lambda r: r.ended),
    ("MAKESPAN", lambda r: clock(r.makespan)),
    ("SUCCEEDED", lambda r: r.tasks.get("succeeded", 0)),
    ("UNFINISHED", lambda r: r.tasks["unfinished"]),
    ("WAIT P50", lambda r: _figure(r.wait["p50"], " s")),
    ("WAIT P90", lambda r: _figure(r.wait["p90"], " s")),
    ("SLOWDOWN P90", lambda r: _figure(r.slowdown["p90"], "")),
    ("CPU", lambda r: _part(r.use.get("cpu"))),
    ("GPU", lambda r: _part(r.use.get("gpu"))),
    ("FAIRNESS", lambda r: _figure(r.fairness, "")),
    ("EVICTED", lambda r: r.evictions),
    ("PREEMPTED", lambda r: r.preemptions),
)


def _sweep(
    file: Path,
    fixed: dict[str, Any],
    swept: list[tuple[str, list[Any]]],
    limit: float | None,
    plot: Path | None,
    as_json: bool,
) -> int:
    runs: list[Swept] = []
    for run in sweep(file, fixed, swept, limit):
        runs.append(run)
        if as_json:
            _record({"settings": run.settings, **run.report.record()})
    if not as_json:
        say(sweep_text(runs))
    if plot is not None:
        plot_sweep(runs, plot)
        note(f"drawn: {plot}")
    return 0


def sweep_text(runs: Sequence[Swept]) -> str:
    """One table: what was set, and how it went."""
    rows = [[*(name.upper() for name in runs[0].settings), *(header for header, _ in _COLUMNS)]]
    rows += [
        [*(plain(value) for value in run.settings.values()), *(plain(text(run.report)) for _, text in _COLUMNS)]
        for run in runs
    ]
    return aligned(rows)


def _figure(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.1f}{unit}" if unit or value >= 10 else f"{value:.3f}"


def _part(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
