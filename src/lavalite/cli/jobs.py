"""What people do with jobs: look at them, act on them, read what they wrote."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated, Any

import typer

from lavalite.api.models import Explanation, Job, Task
from lavalite.base.errors import InputError, LavaLiteError
from lavalite.cli.connect import Place, at_place
from lavalite.cli.output import (
    Column,
    Format,
    Output,
    Watch,
    fields,
    machine,
    moment,
    note,
    plain,
    say,
    show_lists,
    working,
)
from lavalite.model.amounts import format_amount, format_duration
from lavalite.model.job import Request
from lavalite.model.task import TaskState

MAX_NODES_SHOWN = 3
ORDER = [str(state) for state in TaskState]

JobId = Annotated[int, typer.Argument(metavar="JOB", min=1, help="The job's number.")]
JobIds = Annotated[list[int], typer.Argument(metavar="JOB…", min=1, help="Numbers of jobs.")]


def counts_text(job: Job) -> str:
    """`8 (5 succeeded, 3 running)`; the count alone where all are in the job's state."""
    parts = [f"{job.counts[s]} {s}" for s in sorted(job.counts, key=_rank) if job.counts[s]]
    alone = len(parts) <= 1 and (not parts or parts[0].endswith(f" {job.state}"))
    return str(job.tasks) if alone else f"{job.tasks} ({', '.join(parts)})"


def _rank(state: str) -> int:
    return ORDER.index(state) if state in ORDER else len(ORDER)


def nodes_text(nodes: list[str]) -> str:
    shown = " ".join(nodes[:MAX_NODES_SHOWN])
    return f"{shown} +{len(nodes) - MAX_NODES_SHOWN}" if len(nodes) > MAX_NODES_SHOWN else shown


def request_text(request: dict[str, Any]) -> str:
    """`1 cpu, 16GiB memory, 2 gpu A100, 1 matlab`."""
    asked = Request.model_validate(request)
    parts = [format_amount(kind, amount, named=True) for kind, amount in asked.amounts().items()]
    if asked.gpu_model:
        parts.append(f"GPU model {asked.gpu_model}")
    if asked.gpu_mig:
        parts.append(f"of MIG profile {asked.gpu_mig}")
    if asked.gpu_topology:
        parts.append(f"GPUs together by {asked.gpu_topology}")
    if asked.gpu_memory_bytes:
        parts.append(f"{format_amount('memory', asked.gpu_memory_bytes)} on each GPU")
    parts += [f"{amount} {name}" for name, amount in asked.floating.items()]
    parts += ["a node for itself"] if asked.exclusive else []
    parts += [f"{kind} of pool {pool}" for kind, pool in asked.pools.items()]
    return ", ".join(parts)


def starts_text(found: Job | Explanation) -> str:
    """`planned 2026-11-30 08:00:00`, `about …`, `not before …`, `unknown`; empty where nothing waits."""
    return f"{plain(found.starts)} {moment(found.starts_at)}".strip()


def needs_text(found: Job) -> str:
    """What a task needs; of a job with parts `ps: 1 × 4 cpu; worker: 4 × 8 cpu, 1 gpu`."""
    if not found.parts:
        return request_text(found.request)
    words = (f"{p.get('name')}: {p.get('tasks')} × {request_text(p.get('request', {}))}" for p in found.parts)
    return plain("; ".join(words))


JOB_COLUMNS: list[Column[Job]] = [
    Column("JOB", lambda j: j.id),
    Column("NAME", lambda j: j.name),
    Column("USER", lambda j: j.user),
    Column("QUEUE", lambda j: j.queue),
    Column("HOST", lambda j: j.host),
    Column("STATE", lambda j: j.state),
    Column("TASKS", counts_text),
    Column("NODES", lambda j: nodes_text(j.nodes)),
    Column("SUBMITTED", lambda j: moment(j.submitted_at)),
    Column("STARTS", starts_text, wide=True),
    Column("STARTED", lambda j: moment(j.started_at), wide=True),
    Column("ENDED", lambda j: moment(j.ended_at), wide=True),
    Column("EXIT", lambda j: j.exit_code, wide=True),
    Column("NEEDS", needs_text, wide=True),
    Column("COMMAND", lambda j: shlex.join(j.command), wide=True),
]

TASK_COLUMNS: list[Column[Task]] = [
    Column("TASK", lambda t: t.index),
    Column("STATE", lambda t: t.state),
    Column("ATTEMPT", lambda t: t.attempt or ""),
    Column("NODE", lambda t: t.node),
    Column("EXIT", lambda t: t.exit_code),
    Column("STARTED", lambda t: moment(t.started_at)),
    Column("ENDED", lambda t: moment(t.ended_at)),
    Column("GPUS", lambda t: " ".join(t.gpus) + (f" ({t.gpu_topology})" if t.gpu_topology else ""), wide=True),
    Column("SPECIAL", lambda t: " ".join(d for _, ids in sorted(t.special.items()) for d in ids), wide=True),
    Column("REASON", lambda t: t.reason),
    Column("PREEMPTED", lambda t: t.preemptions or "", wide=True),
    Column("PART", lambda t: t.part, wide=True),
]


def _known(states: str) -> str:
    unknown = sorted(set(filter(None, states.split(","))) - set(ORDER))
    if unknown:
        raise InputError(f"there is no state {unknown[0]}", field="--in", hint=f"Known: {', '.join(ORDER)}.")
    return states


@at_place
def jobs(
    place: Place,
    states: Annotated[str, typer.Option("--in", metavar="STATE,…", help="Only jobs in these states.")] = "",
    user: Annotated[str, typer.Option(help="Only this user's.")] = "",
    queue: Annotated[str, typer.Option(help="Only of this queue.")] = "",
    host: Annotated[str, typer.Option(help="Only on this logical host.")] = "",
    name: Annotated[str, typer.Option(help="Only of this name.")] = "",
    output: Output = Format.TABLE,
    watch: Watch = False,
) -> None:
    """List jobs, newest last."""
    filters = {"state": _known(states), "user": user, "queue": queue, "host": host, "name": name}
    with place.client() as client:
        show_lists(lambda: client.jobs(**filters), JOB_COLUMNS, output, watch)


@at_place
def job(place: Place, job_id: JobId, output: Output = Format.TABLE) -> None:
    """Show one job, and why it waits."""
    with place.client() as client:
        found = working(lambda: client.job(job_id))
    say(job_text(found) if output in (Format.TABLE, Format.WIDE) else machine(found, output))


def job_text(found: Job) -> str:
    walltime = format_duration(found.walltime_seconds) if found.walltime_seconds else ""
    return fields(
        [
            ("job", found.id),
            ("name", found.name),
            ("user", found.user),
            ("queue", found.queue),
            ("host", found.host),
            ("state", found.state),
            ("why", found.why),
            ("starts", " ".join(filter(None, [starts_text(found), found.starts_why]))),
            ("tasks", counts_text(found)),
            ("array", found.array),
            ("nodes", " ".join(found.nodes)),
            ("command", shlex.join(found.command)),
            ("needs", needs_text(found)),
            ("gang", gang_text(found.gang)),
            ("affinity", "; ".join(found.affinity)),
            ("walltime", walltime),
            ("grace", format_duration(found.grace_seconds) if found.grace_seconds else ""),
            ("component", found.component),
            ("after", ", ".join(found.depends)),
            ("rerunnable", "yes" if found.rerunnable else ""),
            ("submitted", moment(found.submitted_at)),
            ("started", moment(found.started_at)),
            ("ended", moment(found.ended_at)),
            ("exit code", found.exit_code),
        ]
    )


def gang_text(gang: dict[str, Any] | None) -> str:
    """`all tasks together, nodes_most 2, within rack`; empty for none."""
    if gang is None:
        return ""
    wishes = [f"{name} {value}" for name, value in gang.items() if value and (name, value) != ("nodes_least", 1)]
    return ", ".join(["all tasks together", *wishes])


@at_place
def tasks(
    place: Place,
    job_id: JobId,
    states: Annotated[str, typer.Option("--in", metavar="STATE,…", help="Only tasks in these states.")] = "",
    output: Output = Format.TABLE,
    watch: Watch = False,
) -> None:
    """List a job's tasks."""
    with place.client() as client:
        show_lists(lambda: client.tasks(job_id, state=_known(states)), TASK_COLUMNS, output, watch)


@at_place
def logs(
    place: Place,
    job_id: JobId,
    task: Annotated[int | None, typer.Option(min=0, help="Of this task of an array.")] = None,
    stderr: Annotated[bool, typer.Option("--stderr", help="Standard error instead of standard output.")] = False,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it has ended.")] = False,
) -> None:
    """Print what a job wrote."""
    stream = "stderr" if stderr else "stdout"
    out = sys.stdout.fileno()
    with place.client() as client:
        for piece in client.output(job_id, task=task, stream=stream, follow=follow):
            left = memoryview(piece)
            while left:
                left = left[os.write(out, left) :]


@at_place
def explain(place: Place, job_id: JobId, output: Output = Format.TABLE) -> None:
    """Say why a job waits: which nodes were turned away and why, and what comes nearest."""
    with place.client() as client:
        found = working(lambda: client.explain(job_id))
    say(explanation_text(found) if output in (Format.TABLE, Format.WIDE) else machine(found, output))


def explanation_text(found: Explanation) -> str:
    """What it asks for, and below it what stands against that; the one sentence where nothing was counted."""
    head = f"job {found.job} {'waits' if found.state == TaskState.PENDING else found.state}"
    lines = [f"{head}: {plain(found.asks)}" if found.asks else head]
    turned = [f"{count} {_words(reason, count)}" for reason, count in found.filters.items() if count]
    if found.nodes or turned:
        lines.append("  ".join(["", f"{found.nodes} node{'s' if found.nodes != 1 else ''}", *turned]))
    if found.nearest:
        lacks = " and ".join(format_amount(kind, amount, named=True) for kind, amount in found.lacks.items())
        held = f", held by {', '.join(map(plain, found.held_by))}" if found.held_by else ""
        lines.append(f"  nearest  {plain(found.nearest)}{' lacks ' + lacks if lacks else ''}{held}")
    lines += ["  " + plain(_part_text(part)) for part in found.parts]
    if share := found.fairshare:
        lines.append("  " + plain(_share_text(share)))
    if found.sentence and not turned:
        lines.append(f"  {plain(found.sentence)}")
    if found.starts:
        lines.append(f"  starts  {starts_text(found)}{': ' + plain(found.starts_why) if found.starts_why else ''}")
    return "\n".join(lines)


def _part_text(part: dict[str, Any]) -> str:
    """`worker  2 of 4 fit alone`, and where none does, why."""
    fit = f"part {part.get('name')}  {part.get('fit')} of {part.get('tasks')} fit alone"
    held = ", ".join(part.get("held_by") or ())
    return f"{fit}: {part.get('sentence')}{f' Held by {held}.' if held else ''}" if part.get("sentence") else fit


def _share_text(share: dict[str, Any]) -> str:
    """Where the job's group and user stand in the queue."""
    hours = [float(share.get(name, 0)) / 3600 for name in ("used_core_seconds", "user_used_core_seconds")]
    ahead = share.get("groups_ahead", 0)
    before = f"{ahead} group{'s' if ahead != 1 else ''} before it" if ahead else "no group before it"
    group = (
        f"group {share.get('group') or 'of nobody'} (share {share.get('share')}) has used {hours[0]:.1f} core-hours"
    )
    user = f"{share.get('user')} (share {share.get('user_share')}) {hours[1]:.1f} of them"
    return f"fairshare  {group}, {user}; {before}"


def _words(reason: str, count: int) -> str:
    from lavalite.placement.reasons import WORDS, Reason

    if reason in set(Reason):
        return WORDS[Reason(reason)][count != 1]
    return plain(reason.replace("_", " "))


# --- acting on jobs -------------------------------------------------------------------------------------------


def _each(place: Place, verb: str, done: str, job_ids: list[int], *arguments: object) -> int:
    """Do it to each job, and go on where one refuses; the exit code of the worst."""
    worst = 0
    with place.client() as client:
        for job_id in job_ids:
            call = getattr(client, verb)
            try:
                found: Job = call(job_id, *arguments)
            except LavaLiteError as error:
                if len(job_ids) == 1 or error.exit_code == 3:
                    raise
                note(f"job {job_id}: {error}")
                worst = max(worst, error.exit_code)
            else:
                say(f"job {job_id} {done}: {found.state}")
    return worst


def parse_tasks(text: str) -> list[int]:
    """`1,3-5` as [1, 3, 4, 5]. Raises InputError."""
    from lavalite.cli.submit import parse_array

    try:
        return sorted({index for part in text.split(",") for index in parse_array(part.strip()).indices()})
    except InputError:
        raise InputError(f"{text} names no tasks", field="--task", hint="Write it as 1,3-5.") from None


@at_place
def cancel(
    place: Place,
    job_ids: JobIds,
    task: Annotated[str, typer.Option(metavar="1,3-5", help="Only these tasks of an array.")] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Operators: what is unknown, on a node that is lost, has ended.")
    ] = False,
) -> int:
    """End jobs, or tasks of them."""
    return _each(place, "cancel", "asked to end", job_ids, parse_tasks(task) if task else None, force)


@at_place
def hold(place: Place, job_ids: JobIds) -> int:
    """Keep waiting jobs from starting."""
    return _each(place, "hold", "held", job_ids)


@at_place
def release(place: Place, job_ids: JobIds) -> int:
    """Let held jobs start."""
    return _each(place, "release", "released", job_ids)


@at_place
def suspend(place: Place, job_ids: JobIds) -> int:
    """Stop running jobs for a while; they keep what they hold."""
    return _each(place, "suspend", "asked to stop for a while", job_ids)


@at_place
def resume(place: Place, job_ids: JobIds) -> int:
    """Let suspended jobs go on."""
    return _each(place, "resume", "asked to go on", job_ids)


@at_place
def requeue(place: Place, job_ids: JobIds) -> int:
    """End what runs of jobs, and let it start again."""
    return _each(place, "requeue", "asked to start again", job_ids)
