"""`lavalite submit`: from what was typed to a job, and waiting for its end."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from lavalite.api.models import Job, Submit
from lavalite.base.errors import Fault, InputError, LavaLiteError
from lavalite.cli.affinity import parse_affinity
from lavalite.cli.connect import Place, at_place
from lavalite.cli.output import Format, Output, machine, note, progress, say
from lavalite.cli.parts import demand_no_request, parse_part
from lavalite.cli.request import at_option, make_request, parse_pairs
from lavalite.model.amounts import parse_count, parse_duration
from lavalite.model.job import MAX_AMOUNT, Array, Dependency, DependencyKind, JobSpec
from lavalite.model.task import FINAL, TaskState

POLL_SECONDS = 0.25
SLOWEST_POLL_SECONDS = 2.0
ENDED = frozenset(state.value for state in FINAL)

_ARRAY = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?")
_NODES = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_AFTER = re.compile(r"(?:([a-z]+):)?([0-9]{1,19})(?:\[(\*|[0-9:-]+)\])?")


def parse_array(text: str, option: str = "--array") -> Array:
    """`1-8`, `0-100:10` or `5`. Raises InputError."""
    match = _ARRAY.fullmatch(text)
    if not match:
        raise InputError(f"{text} is no array", field=option, hint="Write it as 1-8, or 0-100:10 for each tenth.")
    try:
        return Array(first=int(match[1]), last=int(match[2] or match[1]), step=int(match[3] or 1))
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(message, field=option, hint="Write it as 1-8.") from None


def parse_after(text: str) -> list[Dependency]:
    """`done:12,exit:13,ended:14[3-5],started:15,done:16[*]`; a bare number means done. Raises InputError."""
    depends = []
    for part in text.split(","):
        match = _AFTER.fullmatch(part.strip())
        if not match or (match[1] and match[1] not in set(DependencyKind)) or not 1 <= int(match[2]) <= MAX_AMOUNT:
            hint = "Write it as done:12, exit:12, ended:12 or started:12, perhaps with [3], [1-8] or [*] behind it."
            raise InputError(f"{part.strip() or 'nothing'} is no dependency", field="--after", hint=hint)
        tasks = parse_array(match[3], "--after") if match[3] and match[3] != "*" else None
        kind = DependencyKind(match[1] or "done")
        depends.append(Dependency(kind=kind, job=int(match[2]), tasks=tasks, each=match[3] == "*"))
    return depends


def make_gang(tasks_per_node: int | None, nodes: str, within: str, prefer_within: str = "") -> dict[str, Any]:
    """A gang; `nodes` is `2`, `2-4` or empty. Raises InputError."""
    match = _NODES.fullmatch(nodes) if nodes else None
    if nodes and not match:
        hint = "Write it as 2, or as 2-4 for from two to four."
        raise InputError(f"{nodes} is no number of nodes", field="--nodes", hint=hint)
    found: dict[str, Any] = {"tasks_per_node": tasks_per_node, "within": within, "prefer_within": prefer_within}
    if match:
        found |= {"nodes_least": int(match[1]), "nodes_most": int(match[2] or match[1])}
    return found


def parse_backoff(text: str) -> dict[str, int]:
    """`first=10s,factor=3,most=5m`, or some of it. Raises InputError."""
    hint = "Write it as first=10s,factor=3,most=5m, or some of that."
    found = {}
    for name, value in parse_pairs(text.split(","), "--backoff", "first=10s,factor=3,most=5m").items():
        if name not in ("first", "factor", "most"):
            raise InputError(f"{name} is nothing that a back-off has", field="--backoff", hint=hint)
        try:
            parsed = parse_count(value) if name == "factor" else parse_duration(value)
        except InputError as error:
            raise error.at("--backoff") from None
        found[name if name == "factor" else f"{name}_seconds"] = parsed
    return found


def make_spec(values: dict[str, Any]) -> JobSpec:
    """The job, or an InputError that names the options that are wrong."""
    try:
        return JobSpec.model_validate(values)
    except ValidationError as error:
        faults = []
        for found in error.errors(include_url=False):
            steps = [str(step).replace("_", "-") for step in found["loc"] if step != "request"]
            steps = ["part", *steps[1:]] if steps[:1] == ["parts"] else steps
            message = str(found["msg"]).removeprefix("Value error, ").replace("Input should be", "it should be", 1)
            faults.append(
                Fault("bad_input", message, f"--{steps[0]}" if steps else "", "See `lavalite submit --help`.")
            )
        raise InputError(faults=faults) from None


def _command(command: list[str], shell: str) -> list[str]:
    if shell and command:
        raise InputError("--shell and a command exclude each other", field="--shell", hint="Give one of the two.")
    if not shell and not command:
        hint = "Write it last: lavalite submit -- COMMAND ARGS, or --shell 'TEXT' to have a shell read it."
        raise InputError("there is no command", hint=hint)
    return ["/bin/sh", "-c", shell] if shell else command


def _here() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        raise InputError("this folder is gone", field="--cwd", hint="Go to another, or give --cwd.") from None


_RESOURCES = "What one task needs"
_PLACE = "Where and when"


@at_place
def submit(
    place: Place,
    command: Annotated[list[str] | None, typer.Argument(metavar="COMMAND ARGS…", show_default=False)] = None,
    shell: Annotated[str, typer.Option(metavar="TEXT", help="Run this text by /bin/sh, instead of a command.")] = "",
    name: Annotated[str, typer.Option(help="What to call it.")] = "",
    array: Annotated[str, typer.Option(metavar="1-8[:STEP]", help="One task for each index.")] = "",
    gang: Annotated[bool, typer.Option("--gang", help="All tasks start together or not at all.")] = False,
    tasks_per_node: Annotated[int | None, typer.Option(help="Of a gang: at most so many on a node.")] = None,
    nodes: Annotated[str, typer.Option(metavar="2[-4]", help="Of a gang: on so many nodes.")] = "",
    within: Annotated[str, typer.Option(metavar="LABEL", help="Of a gang: all on nodes alike in it, as rack.")] = "",
    prefer_within: Annotated[
        str, typer.Option(metavar="LABEL", help="Of a gang: on nodes of as few values of it as can be.")
    ] = "",
    cpu: Annotated[str, typer.Option(help="Cores: 4, or 0.5; else 1.", rich_help_panel=_RESOURCES)] = "",
    memory: Annotated[str, typer.Option(help="Memory: 16GiB.", rich_help_panel=_RESOURCES)] = "",
    gpu: Annotated[str, typer.Option(help="GPUs: 2, or 0.5.", rich_help_panel=_RESOURCES)] = "",
    gpu_model: Annotated[str, typer.Option(help="Only GPUs of this model.", rich_help_panel=_RESOURCES)] = "",
    gpu_memory: Annotated[str, typer.Option(help="Memory that each GPU has.", rich_help_panel=_RESOURCES)] = "",
    mig: Annotated[
        str, typer.Option(metavar="1g.10gb", help="MIG instances of it, no whole GPUs.", rich_help_panel=_RESOURCES)
    ] = "",
    gpu_topology: Annotated[
        str,
        typer.Option(metavar="nvlink|pcie|numa", help="GPUs that have this in common.", rich_help_panel=_RESOURCES),
    ] = "",
    storage: Annotated[str, typer.Option(help="Local storage: 1TiB.", rich_help_panel=_RESOURCES)] = "",
    network: Annotated[str, typer.Option(help="Bandwidth: 10Gbit/s.", rich_help_panel=_RESOURCES)] = "",
    special: Annotated[
        list[str] | None, typer.Option(metavar="KIND=N", help="Special devices: fpga=1.", rich_help_panel=_RESOURCES)
    ] = None,
    floating: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="Licences.", rich_help_panel=_RESOURCES)
    ] = None,
    pool: Annotated[
        list[str] | None, typer.Option(metavar="KIND=POOL", help="From which pool.", rich_help_panel=_RESOURCES)
    ] = None,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="Each task has a node for itself.", rich_help_panel=_RESOURCES)
    ] = False,
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="name=ps,tasks=2,cpu=4,…",
            help="Instead of all that, once for each sort of tasks: what one needs, how many. All start together.",
            rich_help_panel=_RESOURCES,
        ),
    ] = None,
    queue: Annotated[str, typer.Option(help="Queue; else the default one.", rich_help_panel=_PLACE)] = "",
    host: Annotated[str, typer.Option(help="Run on this logical host.", rich_help_panel=_PLACE)] = "",
    reservation: Annotated[str, typer.Option(help="Run in this reservation.", rich_help_panel=_PLACE)] = "",
    group: Annotated[str, typer.Option(help="For whom it counts; else your own group.", rich_help_panel=_PLACE)] = "",
    policy: Annotated[str, typer.Option(help="Placement policy; else the queue's.", rich_help_panel=_PLACE)] = "",
    affinity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="name=db[,within=rack][,prefer=50]",
            help="Near tasks of name=, group=, job=12 or job=self, or on nodes with label=rack:r1|r2: demanded, or"
            " with prefer= preferred.",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    anti_affinity: Annotated[
        list[str] | None, typer.Option(metavar="job=self[,…]", help="Apart from them.", rich_help_panel=_PLACE)
    ] = None,
    priority: Annotated[int, typer.Option(help="Among jobs of the queue.", rich_help_panel=_PLACE)] = 0,
    after: Annotated[
        str,
        typer.Option(
            metavar="done:12,…",
            help="Wait for jobs: done, exit, ended, started; of an array for done:12[3], done:12[1-8], or"
            " done:12[*] index by index.",
            rich_help_panel=_PLACE,
        ),
    ] = "",
    hold: Annotated[bool, typer.Option("--hold", help="Wait for `release`.", rich_help_panel=_PLACE)] = False,
    walltime: Annotated[str, typer.Option(metavar="15m", help="Ended after so long.")] = "",
    grace: Annotated[
        str, typer.Option(metavar="90s", help="From the request to end to the end by force; else 10s.")
    ] = "",
    start_within: Annotated[
        str, typer.Option(metavar="10m", help="Cancelled when nothing of it was placed for so long.")
    ] = "",
    retries: Annotated[
        int | None, typer.Option(help="Try so often again if it fails; else as the queue says.")
    ] = None,
    retry_on: Annotated[str, typer.Option(metavar="75,SIGKILL,…", help="Only if it ends with one of these.")] = "",
    backoff: Annotated[
        str,
        typer.Option(
            metavar="first=10s,factor=3,most=5m", help="How long to wait before that; else as the queue says."
        ),
    ] = "",
    rerunnable: Annotated[bool, typer.Option("--rerunnable", help="May start again elsewhere.")] = False,
    cwd: Annotated[str, typer.Option(metavar="DIR", help="Where it runs; else this folder.")] = "",
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Its environment: these alone.")] = None,
    stdout: Annotated[str, typer.Option(metavar="PATH", help="Write there; %J is the job, %I the task.")] = "",
    stderr: Annotated[str, typer.Option(metavar="PATH", help="As --stdout.")] = "",
    key: Annotated[str, typer.Option(help="The same key again names the same job.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; exit 0 if it succeeded, else 1.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say whether it would be taken.")] = False,
    output: Output = Format.TABLE,
) -> int:
    """Submit a job. Its environment is what --env says: nothing of this shell's is taken along."""
    typed = {"cpu": cpu, "memory": memory, "gpu": gpu, "gpu_memory": gpu_memory}
    typed |= {"storage": storage, "network": network}
    more = {"gpu_model": gpu_model, "mig": mig, "gpu_topology": gpu_topology, "array": array}
    demand_no_request(part, typed | more | {"special": special, "floating": floating, "pool": pool})
    spec = make_spec(
        {
            "name": name,
            "command": _command(command or [], shell),
            "array": parse_array(array) if array else None,
            "gang": make_gang(tasks_per_node, nodes, within, prefer_within)
            if gang or tasks_per_node or nodes or within or prefer_within
            else None,
            "queue": queue,
            "host": host,
            "reservation": reservation,
            "request": make_request(typed, gpu_model, floating or [], pool or [], special or [])
            | {"gpu_topology": gpu_topology, "gpu_mig": mig, "exclusive": exclusive},
            "parts": [parse_part(text) for text in part] if part else None,
            "group": group,
            "policy": policy,
            "affinity": [
                *(parse_affinity(text, anti=False) for text in affinity or []),
                *(parse_affinity(text, anti=True) for text in anti_affinity or []),
            ],
            "priority": priority,
            "walltime_seconds": _duration(walltime, "--walltime"),
            "retries": retries,
            "retry_on": [code.strip() for code in retry_on.split(",")] if retry_on else None,
            "backoff": parse_backoff(backoff) if backoff else None,
            "rerunnable": rerunnable,
            "hold": hold,
            "depends": parse_after(after) if after else [],
            "cwd": cwd or _here(),
            "environment": parse_pairs(env or [], "--env", "LANG=C"),
            "stdout_path": stdout,
            "stderr_path": stderr,
            # Only where they are said: a scheduler of an earlier release knows neither.
            **({"grace_seconds": _duration(grace, "--grace")} if grace else {}),
            **({"start_within_seconds": _duration(start_within, "--start-within")} if start_within else {}),
        }
    )
    with place.client() as client:
        with progress("submitting"):
            submitted = client.submit([Submit(spec=spec, key=key)], dry_run=dry_run)
        if output in (Format.JSON, Format.YAML):
            say(machine(submitted, output))
        elif dry_run:
            say("good: it would be taken, nothing was submitted")
        for job_id in submitted.ids if not dry_run else []:
            if output in (Format.TABLE, Format.WIDE):
                say(f"job {job_id}{' (submitted before)' if job_id in submitted.existing else ''}")
            if wait:
                return wait_for(client.job, job_id)
    return 0


def _duration(text: str, option: str) -> int | None:
    try:
        return parse_duration(text) if text else None
    except InputError as error:
        raise InputError(faults=[at_option(fault, option) for fault in error.faults]) from None


def wait_for(read: Any, job_id: int) -> int:
    """Wait until the job has ended, and say how; 0 if it succeeded, else 1. `read` gets a Job by its number."""
    pause = POLL_SECONDS
    with progress(f"waiting for job {job_id}") as words:
        while True:
            job: Job = read(job_id)
            if job.state in ENDED:
                break
            words(f"job {job_id} {job.state}{': ' + job.why if job.why else ''}")
            time.sleep(pause)
            pause = min(pause * 1.2, SLOWEST_POLL_SECONDS)
    code = "" if job.exit_code in (None, 0) else f" (exit code {job.exit_code})"
    note(f"job {job_id} {job.state}{code}")
    return 0 if job.state == TaskState.SUCCEEDED else LavaLiteError.exit_code
