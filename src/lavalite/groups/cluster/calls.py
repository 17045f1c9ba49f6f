"""Calls of /v1 from a coroutine: the client is synchronous, and each thread has one of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

from lavalite.api.client import Client

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 16
"""So many calls at once. None of them waits for long: who waits for room asks again and again."""


class Calls:
    """`make_client` makes one more client; nothing is asked yet by that."""

    def __init__(self, make_client: Callable[[], Client]) -> None:
        self._make_client = make_client
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lavalite-groups")
        self._own = threading.local()
        self._clients: list[Client] = []

    async def __call__(self, call: Callable[Concatenate[Client, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a method of Client answers. What is asked is asked, whoever stops waiting for it."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: call(self._client(), *args, **kwargs)
        )

    async def every(
        self, call: Callable[Concatenate[Client, P], Iterator[T]], *args: P.args, **kwargs: P.kwargs
    ) -> list[T]:
        """All that a method of Client gives, page by page."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: list(call(self._client(), *args, **kwargs))
        )

    def _client(self) -> Client:
        """This thread's own."""
        client: Client | None = getattr(self._own, "client", None)
        if client is None:
            client = self._own.client = self._make_client()
            self._clients.append(client)
        return client

    async def close(self) -> None:
        """Wait for what is asked at the moment, and let go of all connections."""
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        while self._clients:
            self._clients.pop().close()
