"""The contract of compute groups on a running system: `lavalite up`, as a person starts it, with four played GPUs."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from groups_on import MakeManager

from lavalite.groups import ComputeGroupManager, connect

GPUS = "GPU-0,GPU-1,GPU-2,GPU-3"


class UpSystem:
    """One that runs in a folder whose name leaves room for the paths of sockets."""

    def __init__(self, state: Path, gpus: str = GPUS) -> None:
        self.state = state
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("LAVALITE_")}
        played = Path(__file__).parent / "fake_gpus"
        self.environment |= {"LAVALITE_STATE": str(state), "PYTHONPATH": str(played), "FAKE_GPUS": gpus}

    async def lavalite(self, *typed: str) -> str:
        return await asyncio.to_thread(self._run, typed)

    def _run(self, typed: tuple[str, ...]) -> str:
        command = [sys.executable, "-P", "-m", "lavalite.cli.main", *typed]
        done = subprocess.run(
            command, env=self.environment, cwd="/tmp", capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, (typed, done.stdout, done.stderr)
        return done.stdout

    async def planner(self) -> ComputeGroupManager:
        return await connect(f"up:{self.state}")


@asynccontextmanager
async def up_system(*typed: str) -> AsyncIterator[UpSystem]:
    base = Path(tempfile.mkdtemp(prefix="lava-", dir="/tmp"))
    system = UpSystem(base / "state")
    try:
        await system.lavalite("up", "--port-base", "0", "--node", "n1", *typed)
        yield system
    finally:
        await system.lavalite("down")
        shutil.rmtree(base, ignore_errors=True)


@asynccontextmanager
async def environment(tmp_path: Path) -> AsyncIterator[MakeManager]:
    async with up_system() as system:
        yield system.planner
