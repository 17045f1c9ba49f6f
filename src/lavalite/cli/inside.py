"""`lavalite host grow`, for what runs inside a logical host: asks the agent of this node, as `lavalite-host` does."""

from __future__ import annotations

from typing import Annotated

import typer

from lavalite.cli.output import say
from lavalite.sbatchd import ask

Host = Annotated[str, typer.Argument(metavar="HOST", help="Default: the one that this runs inside of.")]


def grow(
    host: Host = "",
    cpu: Annotated[str, typer.Option(metavar="4", show_default=False)] = "",
    memory: Annotated[str, typer.Option(metavar="8GiB", show_default=False)] = "",
    gpu: Annotated[str, typer.Option(metavar="2", show_default=False)] = "",
    storage: Annotated[str, typer.Option(metavar="1TiB", show_default=False)] = "",
    network: Annotated[str, typer.Option(metavar="10Gbit/s", show_default=False)] = "",
) -> None:
    """Let the logical host that this runs inside of have so much in all: more than it has, or less.

    Within the limits of its entry in pools.yml. Without amounts: say what it has, and may have.
    """
    typed = {"cpu": cpu, "memory": memory, "gpu": gpu, "storage": storage, "network": network}
    say(ask.table(ask.ask(host, ask.read_amounts(typed))))
