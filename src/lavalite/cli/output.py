"""What a person sees: tables without frames, or the API's own items as JSON or YAML.

A table is for eyes and for `awk`: upper-case headers, two spaces between columns, `–` for nothing, never cut off.
Text from elsewhere (a job's name, a node's) cannot move the cursor: what is not printable is shown as its escape.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar

import typer
from pydantic import BaseModel

Item = TypeVar("Item", bound=BaseModel)
NOTHING = "–"
WATCH_SECONDS = 1.0
PATIENCE_SECONDS = 1.0
"""What takes longer shows a sign of life."""


class Format(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[Format, typer.Option("-o", "--output", help="How to show it.", show_default=True)]
Watch = Annotated[bool, typer.Option("--watch", help="Show it anew each second, until Ctrl-C.")]


@dataclass(frozen=True, slots=True)
class Column(Generic[Item]):
    """`text` says what stands there for an item. `wide` columns are shown with `-o wide` only."""

    header: str
    text: Callable[[Item], object]
    wide: bool = False


def plain(value: object) -> str:
    """One line of printable text, whatever it was; `–` for nothing."""
    text = "" if value is None else str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text or NOTHING


def table(rows: Iterable[Item], columns: Sequence[Column[Item]], *, wide: bool = False) -> str:
    """The rows under upper-case headers; the headers alone where there are no rows."""
    shown = [column for column in columns if wide or not column.wide]
    cells = [[column.header for column in shown]]
    cells += [[plain(column.text(row)) for column in shown] for row in rows]
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; a wide character counts as two."""
    from rich.cells import cell_len

    if not cells:
        return ""
    widths = [max(cell_len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def fields(pairs: Sequence[tuple[str, object]]) -> str:
    """One thing, a line a field; fields with nothing in them are left out."""
    return aligned([[name, plain(value)] for name, value in pairs if value not in (None, "", [], {}, ())])


def machine(value: object, how: Format) -> str:
    """Models (or lists of them) as JSON or YAML, with the API's field names."""
    if isinstance(value, list | tuple):
        bare: Any = [v.model_dump(mode="json") if isinstance(v, BaseModel) else v for v in value]
    else:
        bare = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    if how is Format.JSON:
        return json.dumps(bare, indent=2, ensure_ascii=False)
    import yaml

    return yaml.safe_dump(bare, sort_keys=False, allow_unicode=True).rstrip("\n")


Columns = Sequence[Column[Item]] | Callable[[Iterable[Item]], Sequence[Column[Item]]]
"""The columns of a table, or how to choose them for the items at hand."""


def listed(found: list[Item], columns: Columns[Item], how: Format) -> str:
    """The list as a person or a program asked for it."""
    if how in (Format.JSON, Format.YAML):
        return machine(found, how)
    return table(found, columns(found) if callable(columns) else columns, wide=how is Format.WIDE)


def show_lists(read: Callable[[], Iterable[Item]], columns: Columns[Item], how: Format, watch: bool) -> None:
    """Show a list once, or again and again. `read` gets it from the API each time."""
    if not watch:
        say(listed(working(lambda: list(read())), columns, how))
        return
    if how in (Format.JSON, Format.YAML) or not sys.stdout.isatty():
        while True:
            say(listed(list(read()), columns, how))
            sys.stdout.flush()
            time.sleep(WATCH_SECONDS)
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            text = Text(listed(list(read()), columns, how), no_wrap=True, overflow="crop")
            live.update(text, refresh=True)
            time.sleep(WATCH_SECONDS)


def say(text: str) -> None:
    """A result, on standard output."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """A remark, on standard error, so that it is in nobody's pipe."""
    sys.stderr.write(text + "\n")


Result = TypeVar("Result")


def working(call: Callable[[], Result], what: str = "asking") -> Result:
    """The result of `call`, with a sign of life on a terminal while it takes long."""
    with progress(what):
        return call()


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """On a terminal, say on standard error what takes long. Yields a function that changes the words."""
    if not sys.stderr.isatty():
        yield lambda words: None
        return
    from rich.console import Console

    status = Console(stderr=True).status(what)
    timer = threading.Timer(PATIENCE_SECONDS, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda words: status.update(words)
    finally:
        timer.cancel()
        timer.join()
        status.stop()


def moment(seconds: float | None) -> str:
    """A wall time in the reader's own zone."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
