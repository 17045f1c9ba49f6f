"""From a launch to the properties of its transient unit. Pure, but for the GPUs' minor numbers.

A property is a name, a D-Bus signature and a value, as StartTransientUnit takes it. Times are microseconds there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lavalite.sbatchd.executors import Launch
from lavalite.sbatchd.systemd.records import AttemptFolder

SLICE = "lavalite-work.slice"
TASKS_MOST = 16_384
"""Processes and threads of one attempt: enough for any program, too few to exhaust a node's process ids."""
IO_WEIGHT = 100
MEMORY_LEAST_BYTES = 16 * 1024 * 1024
"""Below this not even the steps before the attempt's program would fit."""
CPU_WEIGHTS = (1, 10_000)
GRACE_LEAST_SECONDS = 0.01
"""systemd takes zero for `for ever`."""
NEVER = 2**64 - 1
COMMON_NVIDIA = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
COMMON_DEVICES = (("/dev/fuse", "rwm"), ("char-infiniband_verbs", "rw"), ("char-rdma_cm", "rw"))
"""What batch work expects beside the terminals and zeros that systemd's `closed` leaves open."""
GPU_FOLDER = Path("/proc/driver/nvidia/gpus")

Property = tuple[str, str, Any]

# Run by systemd as root after the last process is gone, also when sbatchd is not there. A shell and coreutils, not
# our Python: a long attempt may outlive the release that started it. Whole or not at all, and on the disk. It is a
# file in the executor's folder: systemd does not quote a script rightly when it writes a unit down to reload it.
NOTE_END_NAME = "note-end.sh"
NOTE_END = """\
exec > /dev/null 2>&1
umask 077
read -r up rest < /proc/uptime
result=${SERVICE_RESULT:--}
# systemd says this of all that the kernel has killed for want of memory, be it that the whole node was full.
if [ "$result" = oom-kill ]; then
    IFS=: read -r hierarchy controllers path < /proc/self/cgroup
    events=/sys/fs/cgroup$path/memory.events
    [ "$hierarchy" = 0 ] && [ -r "$events" ] && while read -r event count; do
        [ "$event" = oom ] && [ "$count" = 0 ] && result=node-full
    done < "$events"
fi
machine=$(systemctl is-system-running)
[ "$machine" ] || { sleep 1; machine=$(systemctl is-system-running); }
printf '%s %s %s %s %s %s\\n' "$result" "${EXIT_CODE:--}" "${EXIT_STATUS:--}" "$(date +%s.%N)" \
    "$up" "${machine:-unknown}" > "$1/end.new" && sync "$1/end.new" && mv "$1/end.new" "$1/end" && sync "$1"
"""


def fits_unit(path: str) -> bool:
    """Whether systemd takes a path in a command for what it is: it has meanings for `$`, `%` and some more."""
    return re.fullmatch(r"[\w/.,:@+-]+", path) is not None


def unit_name(prefix: str, attempt: str) -> str:
    return f"{prefix}-{attempt}.service"


def attempt_of(prefix: str, unit: str) -> str:
    """The attempt's id, or an empty text for another unit."""
    match = re.fullmatch(re.escape(prefix) + r"-(\d+\.\d+\.\d+)\.service", unit)
    return match[1] if match else ""


def unit_path(unit: str) -> str:
    """Its D-Bus object, spelt as systemd spells it."""
    return "/org/freedesktop/systemd1/unit/" + re.sub("[^A-Za-z0-9]", lambda one: f"_{ord(one[0]):02x}", unit)


def unit_properties(
    launch: Launch,
    folder: AttemptFolder,
    begin: Sequence[str],
    gpu_nodes: Sequence[str] | None = (),
    *,
    max_tasks: int = TASKS_MOST,
) -> list[Property]:
    """All properties of the attempt's unit.

    `begin`: the command that ends in the attempt's program. `gpu_nodes`: device nodes of its GPUs; None where they
    are not known, and then devices are not restricted.
    """
    return [
        ("Description", "s", f"LavaLite attempt {launch.id}"),
        ("Type", "s", "exec"),
        ("Slice", "s", host_slice(launch.host) if launch.host else SLICE),
        # Kept while somebody refers to it, and after a failure until that is acknowledged.
        ("AddRef", "b", True),
        ("CollectMode", "s", "inactive"),
        *_identity(launch),
        *_commands(folder, begin),
        *_ending(launch),
        *_limits(launch, max_tasks),
        *_devices(gpu_nodes, launch.special),
    ]


def _identity(launch: Launch) -> list[Property]:
    # Supplementary groups are those that the user has on this node: systemd looks them up with User=.
    return [
        ("User", "s", str(launch.uid)),
        ("Group", "s", str(launch.gid)),
        ("NoNewPrivileges", "b", True),
        ("UMask", "u", 0o022),
        ("IgnoreSIGPIPE", "b", False),
    ]


def _commands(folder: AttemptFolder, begin: Sequence[str]) -> list[Property]:
    # Not ExecStartEx, ExecStopPostEx: systemd 252 writes them down so that it cannot read them, and after anybody's
    # daemon-reload it would no longer know how to note the end. Hence PermissionsStartOnly for a note as root.
    note_end = ["/bin/sh", str(folder.path.parent / NOTE_END_NAME), str(folder.path)]
    return [
        ("ExecStart", "a(sasb)", [[begin[0], list(begin), False]]),
        ("ExecStopPost", "a(sasb)", [[note_end[0], note_end, False]]),
        ("PermissionsStartOnly", "b", True),
        ("StandardInputFile", "s", str(folder.spec)),
        ("StandardOutputFileToAppend", "s", str(folder.begun)),
        ("StandardErrorFileToAppend", "s", str(folder.begun)),
    ]


def _ending(launch: Launch) -> list[Property]:
    properties: list[Property] = [
        ("KillMode", "s", "control-group"),
        ("TimeoutStartUSec", "t", NEVER),
        ("TimeoutStopUSec", "t", microseconds(max(launch.grace_seconds, GRACE_LEAST_SECONDS))),
        ("OOMPolicy", "s", "kill"),
    ]
    if launch.walltime_seconds is not None:
        properties.append(("RuntimeMaxUSec", "t", microseconds(max(launch.walltime_seconds, GRACE_LEAST_SECONDS))))
    return properties


def _limits(launch: Launch, max_tasks: int) -> list[Property]:
    properties: list[Property] = [("TasksMax", "t", max_tasks), ("IOWeight", "t", IO_WEIGHT)]
    if launch.cpu_milli > 0:
        lowest, highest = CPU_WEIGHTS
        properties.append(("CPUQuotaPerSecUSec", "t", launch.cpu_milli * 1000))
        properties.append(("CPUWeight", "t", min(max(launch.cpu_milli // 10, lowest), highest)))
    if launch.cpus:
        mask = cpu_mask(launch.cpus)
        properties += [("AllowedCPUs", "ay", mask), ("CPUAffinity", "ay", mask)]
    if launch.memory_bytes > 0:
        properties.append(("MemoryMax", "t", max(launch.memory_bytes, MEMORY_LEAST_BYTES)))
        # Swap is far memory, and that is one host's alone. The slice holds all of its attempts to what there is.
        properties.append(("MemorySwapMax", "t", min(launch.host_far_bytes, launch.memory_bytes)))
    return properties


def host_slice(host: str) -> str:
    """Where attempts of a host with far memory are: below SLICE, whatever hyphens its name has."""
    escaped = re.sub("[^A-Za-z0-9_.]", lambda one: f"\\x{ord(one[0]):02x}", host)
    return f"{SLICE.removesuffix('.slice')}-host_{escaped}.slice"


def slice_properties(launch: Launch) -> list[Property]:
    """Of a host's slice: what all of its attempts may use together, near and far."""
    return [
        ("MemoryMax", "t", max(launch.host_near_bytes, MEMORY_LEAST_BYTES)),
        ("MemorySwapMax", "t", launch.host_far_bytes),
    ]


def _devices(gpu_nodes: Sequence[str] | None, special: Sequence[str]) -> list[Property]:
    if gpu_nodes is None:
        return []
    allowed = [list(each) for each in COMMON_DEVICES]
    if gpu_nodes:
        allowed += [[node, "rw"] for node in (*gpu_nodes, *(f"/dev/{name}" for name in COMMON_NVIDIA))]
    # systemd takes no other paths; and who may open what is no device, its owner and mode say.
    allowed += [[path, "rw"] for path in special if path.startswith("/dev/")]
    return [("DevicePolicy", "s", "closed"), ("DeviceAllow", "a(ss)", allowed)]


def process_limits(launch: Launch, *, memory_is_limited: bool) -> dict[str, int]:
    """What is left for setrlimit: not the memory of each process where the whole attempt's is limited.

    That limit would come first and say nothing: an allocation fails, and nobody is told why.
    """
    whole = memory_is_limited and launch.memory_bytes > 0
    return {name: value for name, value in launch.limits.items() if not (whole and name == "RLIMIT_DATA")}


def service_properties(description: str, command: Sequence[str]) -> list[Property]:
    """A service of our own that is to live: restarted without limit, and the last that the kernel would kill."""
    return [
        ("Description", "s", description),
        ("Type", "s", "exec"),
        ("CollectMode", "s", "inactive-or-failed"),
        ("ExecStart", "a(sasb)", [[command[0], list(command), False]]),
        ("Restart", "s", "always"),
        ("RestartUSec", "t", 100_000),
        ("StartLimitIntervalUSec", "t", 0),
        ("OOMScoreAdjust", "i", -900),
        ("NoNewPrivileges", "b", True),
    ]


def oneshot_properties(
    description: str, command: Sequence[str], stdin: Path, stdout: Path, seconds: float
) -> list[Property]:
    """A program of our own that runs once, as root and unconfined; its start is done when it has ended."""
    return [
        ("Description", "s", description),
        ("Type", "s", "oneshot"),
        ("CollectMode", "s", "inactive-or-failed"),
        ("ExecStart", "a(sasb)", [[command[0], list(command), False]]),
        ("TimeoutStartUSec", "t", microseconds(seconds)),
        ("StandardInputFile", "s", str(stdin)),
        ("StandardOutputFileToAppend", "s", str(stdout)),
        ("StandardError", "s", "journal"),
        ("OOMScoreAdjust", "i", -900),
        ("UMask", "u", 0o077),
    ]


def cpu_mask(cores: Sequence[int]) -> bytes:
    """A bit for each core, core 0 the lowest bit of the first byte."""
    mask = bytearray(max(cores) // 8 + 1)
    for core in cores:
        mask[core // 8] |= 1 << core % 8
    return bytes(mask)


def gpu_nodes(gpus: Sequence[str], folder: Path = GPU_FOLDER) -> list[str] | None:
    """Device nodes of NVIDIA's GPUs by UUID, as its driver tells them. None if it does not know one."""
    minors: dict[str, str] = {}
    for file in folder.glob("*/information"):
        lines = (line.partition(":") for line in file.read_text(encoding="utf-8").splitlines())
        facts = {name.strip(): value.strip() for name, _, value in lines}
        minors[facts.get("GPU UUID", "")] = facts.get("Device Minor", "")
    nodes = [f"/dev/nvidia{minors[gpu]}" for gpu in gpus if minors.get(gpu, "").isdigit()]
    return nodes if len(nodes) == len(gpus) else None


def memory_is_limited(file: Path = Path("/sys/fs/cgroup/cgroup.controllers")) -> bool:
    """Whether MemoryMax holds here: the memory controller is version 2 and given to systemd."""
    try:
        return "memory" in file.read_text(encoding="ascii").split()
    except OSError:
        return False


def microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
