"""Where the contract of compute groups is held: each environment is a module groups_NAME.py with `environment`.

    environment(tmp_path)   an async context that gives a function: each call of it (awaited) makes one more manager,
                            as another planner in another process would have it

In each there is at least one node with four GPUs, `Test H100` of 80 GiB, a core and 1 GiB of memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from pathlib import Path

from lavalite.groups import ComputeGroupManager

NAMES = ("local", "cluster", "kubernetes")
MODEL = "Test H100"
MakeManager = Callable[[], Awaitable[ComputeGroupManager]]
Environment = Callable[[Path], AbstractAsyncContextManager[MakeManager]]


async def managers_on(name: str, tmp_path: Path) -> AsyncIterator[MakeManager]:
    environment: Environment = import_module(f"groups_{name}").environment
    async with environment(tmp_path) as make:
        yield make
