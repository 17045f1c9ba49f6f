"""One Watch stream on one member: whole answers, and a sign of life asked for when it falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc.aio

from lavalite.store.etcd_faults import cut_off_as


class StreamEnded(Exception):
    """The stream is of no more use; open another. The text is the member's reason where it gave one."""


async def responses(
    call: Any, create_request: Any, progress_request: Any, silence_seconds: float
) -> AsyncGenerator[Any, None]:
    """The answers on `call`, until StreamEnded.

    A frozen member keeps its connection open and says nothing, as a healthy one does when nothing happens. So after
    half of `silence_seconds` without a word a progress report is asked for, and after the other half we give up.
    The revision in such a report is not used: old versions sent it ahead of the events it covers.
    """
    read: asyncio.Future[Any] | None = None
    try:
        await _write(call, create_request, silence_seconds)
        asked = False
        while True:
            # Not wait_for: cancelling a read would cancel the stream.
            read = read or asyncio.ensure_future(call.read())
            await asyncio.wait({read}, timeout=silence_seconds / 2)
            if read.done():
                answer, read, asked = _answer(read), None, False
                yield answer
            elif asked:
                raise StreamEnded("it fell silent")
            else:
                await _write(call, progress_request, silence_seconds)
                asked = True
    finally:
        call.cancel()
        if read is not None:
            await asyncio.wait({read})
            if not read.cancelled():
                read.exception()  # looked at, so that it is not reported as forgotten


async def _write(call: Any, request: Any, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            with cut_off_as(StreamEnded("the connection was closed")):
                await call.write(request)
    except TimeoutError:
        raise StreamEnded("it takes no requests") from None
    except grpc.aio.AioRpcError as error:
        raise StreamEnded(error.details() or error.code().name) from None
    except (asyncio.InvalidStateError, grpc.aio.UsageError, grpc.aio.InternalError):
        raise StreamEnded("the connection was closed") from None


def _answer(read: asyncio.Future[Any]) -> Any:
    if read.cancelled():
        raise StreamEnded("the connection was closed")
    try:
        answer = read.result()
    except grpc.aio.AioRpcError as error:
        raise StreamEnded(error.details() or error.code().name) from None
    except (asyncio.InvalidStateError, grpc.aio.UsageError, grpc.aio.InternalError):
        raise StreamEnded("the connection was closed") from None
    if answer is grpc.aio.EOF:
        raise StreamEnded("it closed the watch")
    return answer
