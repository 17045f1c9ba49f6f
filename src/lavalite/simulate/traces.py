"""Tasks (and nodes) out of recorded traces.

openb   Alibaba's "GPU 2023" (github.com/alibaba/clusterdata, cluster-trace-gpu-v2023): two files of CSV
SWF     the Standard Workload Format of the Parallel Workloads Archive: 18 numbers a line, `;` begins a comment
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

from lavalite.base.errors import Fault, InputError
from lavalite.model.job import MAX_GANG_TASKS, Gang, Request
from lavalite.model.resources import CPU, GPU, MEMORY, WHOLE, Device
from lavalite.model.specs import NodeCapacity
from lavalite.simulate.entries import TraceEntry

MIB, KIB = 1024**2, 1024
OPENB_NODES, OPENB_TASKS = "openb_node_list_all_node.csv", "openb_pod_list_default.csv"
WHERE = "Take it from github.com/alibaba/clusterdata, folder cluster-trace-gpu-v2023/csv."
SWF_FIELDS = 18
MOST_FAULTS = 20


@dataclass(slots=True, frozen=True)
class TraceJob:
    """One job of a trace: when it comes, what each of its tasks asks for, and how long it runs (None: for ever)."""

    name: str
    at: float
    request: Request
    runs: float | None
    tasks: int = 1
    gang: Gang | None = None
    walltime_seconds: int | None = None
    user: str = "trace"


@dataclass(slots=True)
class Trace:
    jobs: list[TraceJob] = field(default_factory=list)
    nodes: list[NodeCapacity] = field(default_factory=list)
    queue: str = ""


def read_trace(entry: TraceEntry, folder: Path) -> Trace:
    """The trace; its paths are relative to the folder. Raises InputError with file, line and field."""
    trace = _openb(entry, folder / entry.openb) if entry.openb else _swf(entry, folder / entry.swf)
    trace.queue = entry.queue
    return trace


# --- openb ----------------------------------------------------------------------------------------------------------


def _openb(entry: TraceEntry, folder: Path) -> Trace:
    trace, faults = Trace(), list[Fault]()
    if entry.nodes:
        for line, row in _rows(folder / OPENB_NODES, ("sn", "cpu_milli", "memory_mib", "gpu", "model")):
            numbers = _numbers(row, ("cpu_milli", "memory_mib", "gpu"), folder / OPENB_NODES, line, faults)
            if numbers is not None:
                trace.nodes.append(_openb_node(row, *numbers))
    columns = ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "creation_time", "deletion_time", "scheduled_time")
    read: list[tuple[str, tuple[int, ...]]] = []
    for line, row in _rows(folder / OPENB_TASKS, ("name", *columns)):
        if len(faults) >= MOST_FAULTS or (entry.most is not None and len(read) >= entry.most):
            break
        row["scheduled_time"] = row["scheduled_time"] or row["creation_time"]
        numbers = _numbers(row, columns, folder / OPENB_TASKS, line, faults)
        if numbers is not None:
            read.append((row["name"], numbers))
    if faults:
        raise InputError(faults=faults)
    first = min((numbers[4] for _, numbers in read), default=0)
    for name, (cpu, memory, gpus, gpu_milli, created, deleted, scheduled) in read:
        request = Request(
            cpu_milli=cpu, memory_bytes=memory * MIB, gpu_milli=gpu_milli if gpus == 1 else gpus * WHOLE
        )
        runs = float(max(1, deleted - scheduled))
        trace.jobs.append(TraceJob(name, (created - first) / entry.speed, request, runs))
    trace.jobs.sort(key=lambda job: job.at)
    return trace


def _openb_node(row: dict[str, str], cpu_milli: int, memory_mib: int, gpus: int) -> NodeCapacity:
    devices = tuple(Device(id=f"gpu{n}", model=row["model"]) for n in range(gpus))
    amounts = {CPU: cpu_milli, MEMORY: memory_mib * MIB, GPU: gpus * WHOLE}
    return NodeCapacity(row["sn"], {}, {k: a for k, a in amounts.items() if a}, {GPU: devices} if devices else {})


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                message = f"no column {', '.join(missing)}"
                raise InputError(faults=[Fault("bad_trace", message, "", WHERE, str(path), 1)])
            return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(faults=[Fault("unreadable", f"{path} cannot be read: {why}", "", WHERE)]) from None


def _numbers(
    row: dict[str, str], columns: tuple[str, ...], path: Path, line: int, faults: list[Fault]
) -> tuple[int, ...] | None:
    found = []
    for column in columns:
        text = row[column]
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            hint = "Write a whole number, 0 or more."
            faults.append(Fault("bad_trace", f"{text[:40] or 'nothing'} is no number", column, hint, str(path), line))
            return None
        found.append(int(text))
    return tuple(found)


# --- SWF ------------------------------------------------------------------------------------------------------------

_NUMBER, _SUBMIT, _RUN, _USED, _ASKED, _TIME, _MEMORY, _STATUS, _USER = 0, 1, 3, 4, 7, 8, 9, 10, 11


def _swf(entry: TraceEntry, path: Path) -> Trace:
    trace, faults = Trace(), list[Fault]()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(faults=[Fault("unreadable", f"{path} cannot be read: {error.strerror}")]) from None
    for number, text in enumerate(lines, 1):
        if not text.strip() or text.lstrip().startswith(";"):
            continue
        if len(faults) >= MOST_FAULTS or (entry.most is not None and len(trace.jobs) >= entry.most):
            break
        job = _swf_job(text, entry.speed, str(path), number, faults)
        if job is not None:
            trace.jobs.append(job)
    if faults:
        raise InputError(faults=faults)
    trace.jobs.sort(key=lambda job: job.at)
    return trace


def _swf_job(text: str, speed: int, file: str, line: int, faults: list[Fault]) -> TraceJob | None:
    """One job; None for one that never ran, or a broken line. -1 stands for what is not known."""
    words = text.split()
    if len(words) != SWF_FIELDS:
        hint = f"A line of SWF has {SWF_FIELDS} numbers."
        faults.append(Fault("bad_trace", f"{len(words)} fields", "", hint, file, line))
        return None
    numbers = []
    for at, word in enumerate(words, 1):
        try:
            numbers.append(float(word))
        except ValueError:
            hint = "Write -1 where it is not known."
            faults.append(Fault("bad_trace", f"{word[:40]} is no number", f"field {at}", hint, file, line))
            return None
    cores = int(numbers[_ASKED] if numbers[_ASKED] > 0 else numbers[_USED])
    if cores <= 0 or numbers[_RUN] < 0 or numbers[_SUBMIT] < 0:
        return None
    # All of them start together; a gang has a limited number of tasks, so a wide job has several cores in each.
    each = -(-cores // MAX_GANG_TASKS)
    memory = max(0, int(numbers[_MEMORY])) * KIB * each
    return TraceJob(
        name=f"swf-{int(numbers[_NUMBER])}",
        at=numbers[_SUBMIT] / speed,
        request=Request(cpu_milli=WHOLE * each, memory_bytes=memory),
        runs=max(1.0, numbers[_RUN]),
        tasks=-(-cores // each),
        gang=Gang() if cores > 1 else None,
        walltime_seconds=int(numbers[_TIME]) if numbers[_TIME] > 0 else None,
        user=f"user{int(numbers[_USER])}" if numbers[_USER] >= 0 else "trace",
    )
