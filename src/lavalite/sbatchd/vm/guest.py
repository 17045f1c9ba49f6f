"""What the node asks of the guest: to let go of a disk before it is taken out. seed.py lays down who answers.

A guest without that answers nothing, and then the disk stays: what is taken from under a mounted file system is lost.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.vm.qmp import connect_unix

LINE_BYTES = 1024


async def let_go(port: Path, serial: str, seconds: float) -> None:
    """Raises LavaLiteError with what the guest says, or where it says nothing within the time."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            connection = await asyncio.to_thread(connect_unix, port)
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LINE_BYTES)
            writer.write(f"let-go {serial}\n".encode())
            await writer.drain()
            verdict, why = await _answer(reader, serial)
    except TimeoutError:
        raise LavaLiteError(
            f"the guest does not let go of its disk {serial} within {seconds:.0f} s",
            hint="See there whether lavalite-guest.service runs.",
        ) from None
    except (OSError, EOFError, ValueError):
        raise LavaLiteError(f"the guest cannot be asked for its disk {serial}") from None
    finally:
        if writer:
            writer.close()
    if verdict != "gone":
        raise LavaLiteError(f"the guest keeps its disk {serial}: {why}", hint="End there what uses it.")


async def _answer(reader: asyncio.StreamReader, serial: str) -> tuple[str, str]:
    """The guest's text may be anything. Raises ValueError for a line without end, EOFError."""
    while line := await reader.readline():
        verdict, named, why = [*line.decode(errors="replace").strip().split(" ", 2), "", ""][:3]
        if named == serial and verdict in ("gone", "kept"):
            return verdict, "".join(c for c in why if c.isprintable())[:200]
    raise EOFError
