"""NVIDIA's MPS servers, one for each GPU that groups share by it: started for the first group, ended after the last.

    FOLDER/GPU/            pipes of the server, and its pid file
    FOLDER/GPU/lock        held while one of us starts or ends the server
    FOLDER/GPU/of/GROUP    an empty file for each group that uses it

Blocking: call it in a worker thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lavalite.base.errors import LavaLiteError, RefusedError
from lavalite.base.processes import ProcessIdentity
from lavalite.providers.nvml import MPS_CONTROL

PID_FILE = f"{MPS_CONTROL}.pid"
START_SECONDS = 30


class MpsServers:
    """Those of one state file. The folder is to be on a local file system, by a short path, for its sockets."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def directory(self, gpu: str) -> Path:
        """Where the server of the GPU listens, whether there is one or not."""
        return self._folder / gpu

    def use(self, gpu: str, group: str) -> None:
        """See to it that the GPU has a server, and that it stays for this group. Raises LavaLiteError."""
        with self._locked(gpu) as folder:
            if not self.is_running(gpu):
                self._start(gpu, folder)
            (folder / "of" / group).touch()

    def release(self, gpu: str, group: str) -> None:
        """The group needs it no more; the last one's server is ended. Raises LavaLiteError."""
        if not self.directory(gpu).is_dir():
            return
        with self._locked(gpu) as folder:
            (folder / "of" / group).unlink(missing_ok=True)
            if not any((folder / "of").iterdir()) and self.is_running(gpu):
                self._run([_program()], gpu, folder, "quit\n")

    def is_running(self, gpu: str) -> bool:
        try:
            pid = int((self.directory(gpu) / PID_FILE).read_text(encoding="ascii"))
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
        except (OSError, ValueError):
            return False
        return bool(name) and MPS_CONTROL.startswith(name) and ProcessIdentity.of(pid) is not None

    def _start(self, gpu: str, folder: Path) -> None:
        (folder / PID_FILE).unlink(missing_ok=True)
        self._run([_program(), "-d"], gpu, folder, "")
        if not self.is_running(gpu):
            raise LavaLiteError(f"the MPS server of GPU {gpu} ended at once", hint=f"See {folder}/control.log.")

    def _run(self, command: list[str], gpu: str, folder: Path, words: str) -> None:
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": gpu,
            "CUDA_MPS_PIPE_DIRECTORY": str(folder),
            "CUDA_MPS_LOG_DIRECTORY": str(folder),
        }
        try:
            done = subprocess.run(
                command,
                input=words,
                env=environment,
                text=True,
                timeout=START_SECONDS,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LavaLiteError(f"{command[0]} cannot be run for GPU {gpu}: {error}") from None
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise LavaLiteError(f"{MPS_CONTROL} failed for GPU {gpu}: {said[-1] if said else done.returncode}")

    @contextlib.contextmanager
    def _locked(self, gpu: str) -> Iterator[Path]:
        folder = self.directory(gpu)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._folder.stat().st_uid != os.geteuid():
                raise RefusedError(f"{self._folder} belongs to another user", hint="Remove it, or run as that user.")
            (folder / "of").mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LavaLiteError(f"{folder} cannot be made for an MPS server: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(descriptor)


def _program() -> str:
    if (found := shutil.which(MPS_CONTROL)) is None:
        hint = "Install it with NVIDIA's driver, or ask for isolation mig or none."
        raise RefusedError(f"{MPS_CONTROL} is not on PATH, and parts of a GPU are kept apart by it", hint=hint)
    return found
