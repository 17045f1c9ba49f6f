"""From an attempt as the leader sends it to what an executor starts: who may run, where, with what environment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lavalite.base.clock import Clock
from lavalite.model.resources import CPU, GPU, is_special
from lavalite.sbatchd.accounts import Account, Accounts
from lavalite.sbatchd.actions import Start
from lavalite.sbatchd.enter import host_environment, special_environment
from lavalite.sbatchd.executors import Launch
from lavalite.wire.frames import Attempt, HostHere

BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_ID = 2**32 - 1
MAX_ENVIRONMENT_BYTES = 1024 * 1024
_CORES = re.compile(r"(?:cpu|core)?(\d+)(?:-(\d+))?")


@dataclass(slots=True, frozen=True)
class Policy:
    """Whose attempts this agent runs. `own_uid` is sbatchd's: if that is not root, it runs its own uid's alone."""

    own_uid: int
    own_gid: int
    allow_root: bool = False

    def refusal(self, uid: int) -> str:
        """Why an attempt of that user (-1: nobody named) is not run here, or an empty text."""
        if self.own_uid != 0:
            if uid in (-1, self.own_uid):
                return ""
            return f"policy: sbatchd runs as uid {self.own_uid} and cannot start attempts of uid {uid}"
        if uid == -1:
            return "policy: no user is named"
        if uid == 0 and not self.allow_root:
            return "policy: attempts of root are not run here (allow_root is false)"
        return ""


class Launcher:
    """Everything that this node decides about how an attempt is started."""

    def __init__(
        self,
        output_folder: Path,
        policy: Policy,
        clock: Clock,
        *,
        grace_seconds: float,
        enforce_memory: bool,
        inside_socket: str = "",
        find_host: Callable[[str], HostHere | None] = lambda name: None,
    ) -> None:
        """`find_host`: a logical host that is anchored on this node; `inside_socket`: where what runs there may ask
        for more."""
        self.output_folder = output_folder
        self._inside_socket, self._find_host = inside_socket, find_host
        self._accounts = Accounts(clock)
        self._policy = policy
        self._grace_seconds = grace_seconds
        self._enforce_memory = enforce_memory

    def refusal(self, attempt: Attempt) -> str:
        """Why the attempt cannot be run here at all, or an empty text."""
        if not (-1 <= attempt.uid < MAX_ID and -1 <= attempt.gid < MAX_ID):
            return f"policy: uid {attempt.uid} or gid {attempt.gid} is none"
        reason = self._policy.refusal(attempt.uid)
        if reason:
            return reason
        if not attempt.command or not attempt.command[0]:
            return "command: there is none"
        texts = [*attempt.command, attempt.cwd, attempt.stdout_path, attempt.stderr_path]
        texts += [*attempt.environment, *attempt.environment.values()]
        if any("\0" in text for text in texts) or any("=" in name or not name for name in attempt.environment):
            return "command: a zero byte or a bad variable name"
        if sum(len(text) for text in texts) > MAX_ENVIRONMENT_BYTES:
            return f"command: with its environment it is longer than {MAX_ENVIRONMENT_BYTES} bytes"
        if attempt.cwd and not attempt.cwd.startswith("/"):
            return f"cwd: {attempt.cwd} is not absolute"
        try:
            core_numbers(attempt.devices.get(CPU, []))
        except ValueError as error:
            return f"devices: {error}"
        return ""

    def paths(self, attempt: Attempt) -> tuple[str, str]:
        """Absolute paths of stdout and stderr. Only stdout named: stderr goes there too, as batch users expect."""
        cwd = self._cwd(attempt)
        own = self.output_folder / attempt.id
        stdout = os.path.join(cwd, attempt.stdout_path) if attempt.stdout_path else f"{own}.stdout"  # noqa: PTH118
        if attempt.stderr_path:
            return stdout, os.path.join(cwd, attempt.stderr_path)  # noqa: PTH118
        return stdout, stdout if attempt.stdout_path else f"{own}.stderr"

    def launch(self, start: Start) -> Launch:
        attempt = start.attempt
        uid = self._policy.own_uid if attempt.uid < 0 else attempt.uid
        account = self._accounts.of(uid)
        gid = attempt.gid if attempt.gid >= 0 else self._policy.own_gid if account.gid is None else account.gid
        host = self._find_host(attempt.host) if attempt.host else None
        far_bytes = host.far_memory_bytes if host else 0
        limits = {"RLIMIT_CORE": 0}
        if attempt.memory_bytes and self._enforce_memory:
            # Private writable memory, per process. Not the address space: CUDA and Java reserve that by the terabyte.
            limits["RLIMIT_DATA"] = attempt.memory_bytes
        return Launch(
            id=attempt.id,
            argv=attempt.command,
            cwd=self._cwd(attempt),
            environment=environment(attempt, account, host, self._inside_socket),
            stdout_path=start.stdout_path,
            stderr_path=start.stderr_path,
            own_outputs=[name for name in ("stdout_path", "stderr_path") if self._is_own(getattr(start, name))],
            uid=uid,
            gid=gid,
            cpus=core_numbers(attempt.devices.get(CPU, [])),
            limits=limits,
            walltime_seconds=attempt.walltime_seconds,
            grace_seconds=self._grace_seconds,
            fence_after_seconds=attempt.fence_after_seconds,
            contact=start.contact,
            cpu_milli=attempt.cpu_milli,
            memory_bytes=attempt.memory_bytes if self._enforce_memory else 0,
            gpus=attempt.devices.get(GPU, []),
            special=[path for kind, paths in attempt.devices.items() if is_special(kind) for path in paths],
            host=attempt.host if far_bytes else "",
            host_near_bytes=host.memory_bytes - far_bytes if host and far_bytes else 0,
            host_far_bytes=far_bytes,
            groups=self._accounts.groups(uid, gid),
        )

    def _is_own(self, path: str) -> bool:
        return Path(path).parent == self.output_folder

    def _cwd(self, attempt: Attempt) -> str:
        if attempt.cwd:
            return attempt.cwd
        home = self._accounts.of(self._policy.own_uid if attempt.uid < 0 else attempt.uid).home
        return home if os.path.isdir(home) else "/"  # noqa: PTH112 - Path.is_dir raises where it may not look


def environment(
    attempt: Attempt, account: Account, host: HostHere | None = None, inside_socket: str = ""
) -> dict[str, str]:
    """A clean base, then the job's own, then what says which attempt this is, on which logical host: that cannot be
    overridden."""
    user, home = attempt.user or account.name, account.home
    base = {"PATH": BASE_PATH, "HOME": home, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8"}
    job, task, number = attempt.id.split(".")
    gpus = ",".join(attempt.devices.get(GPU, []))
    ours = {
        **(host_environment(host.model_dump()) if host else {}),
        "LAVALITE_ATTEMPT_ID": attempt.id,
        "LAVALITE_JOB": job,
        "LAVALITE_TASK": task,
        "LAVALITE_ATTEMPT": number,
        "LAVALITE_HOST": attempt.host,
        "LAVALITE_CPUS": ",".join(str(core) for core in core_numbers(attempt.devices.get(CPU, []))),
        "LAVALITE_GPUS": gpus,
        # Set although there is none: an attempt without a GPU shall see none.
        "CUDA_VISIBLE_DEVICES": gpus,
    }
    ours |= special_environment(attempt.devices)
    if attempt.host and inside_socket:
        ours["LAVALITE_AGENT_SOCKET"] = inside_socket
    return base | attempt.environment | ours


def core_numbers(devices: list[str]) -> list[int]:
    """Core numbers of devices named `3`, `cpu3`, `core3` or `0-7`. Raises ValueError."""
    cores: set[int] = set()
    for device in devices:
        match = _CORES.fullmatch(device)
        if not match:
            raise ValueError(f"{device!r} names no core")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first > 4096:
            raise ValueError(f"{device!r} names too many cores")
        cores.update(range(first, last + 1))
    return sorted(cores)
