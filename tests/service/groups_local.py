"""This machine, with four GPUs of a recording: each manager has a provider of its own on the same state file."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from groups_on import MakeManager
from played_nvml import module, plain_gpus

from lavalite.groups import ComputeGroupManager, LocalComputeResourceProvider

GPUS = [f"GPU-{number}" for number in range(4)]


async def open_planner(state: Path) -> ComputeGroupManager:
    """One more planner on this state file."""
    return ComputeGroupManager(await LocalComputeResourceProvider.open(state, nvml=module(plain_gpus(GPUS))))


@contextlib.asynccontextmanager
async def environment(tmp_path: Path) -> AsyncIterator[MakeManager]:
    async def make() -> ComputeGroupManager:
        return await open_planner(tmp_path / "groups.db")

    yield make
