"""This machine, with four GPUs of a recording: each manager has a provider of its own on the same state file."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from groups_on import MakeManager
from played_nvml import plain_gpus, playing

from lavalite.groups import ComputeGroupManager, LocalComputeResourceProvider

GPUS = [f"GPU-{number}" for number in range(4)]


@contextlib.asynccontextmanager
async def environment(tmp_path: Path) -> AsyncIterator[MakeManager]:
    async def make() -> ComputeGroupManager:
        return ComputeGroupManager(await LocalComputeResourceProvider.open(tmp_path / "groups.db"))

    with playing(plain_gpus(GPUS)):
        yield make


@contextlib.asynccontextmanager
async def open_planner(path: Path) -> AsyncIterator[ComputeGroupManager]:
    """One planner, with the groups in that file."""
    with playing(plain_gpus(GPUS)):
        async with ComputeGroupManager(await LocalComputeResourceProvider.open(path)) as manager:
            yield manager
