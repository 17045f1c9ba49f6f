"""`lavalite up` and `lavalite down`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lavalite.base.errors import LavaLiteError
from lavalite.cli import local_cluster
from lavalite.cli.connect import Place, at_place, find_place
from lavalite.cli.local_files import DAEMONS, LOOPBACK, StateFolder
from lavalite.cli.output import note, progress, say
from lavalite.providers import lim_socket

PROBE_SECONDS = 1.0
READY = "ready"


def is_ready(folder: StateFolder) -> bool:
    """Whether LIM leads, its own scheduler answers (not one that a dead LIM left), and a node can take work."""
    try:
        leader = lim_socket.who_leads(folder.lim_socket)
        if not leader.mine:
            return False
        with Place(state=folder.path).client(timeout_seconds=PROBE_SECONDS) as client:
            status = client.status()
    except LavaLiteError:
        return False
    return status.epoch == leader.epoch and status.nodes.get(READY, 0) > 0


@at_place
def up(
    place: Place,
    pools: Annotated[Path | None, typer.Option(metavar="FILE", help="Apply this pools.yml, too.")] = None,
    node: Annotated[str, typer.Option(help="What to call this machine; else by its host name.")] = "",
    port_base: Annotated[
        int | None, typer.Option(metavar="N", help="Ports N, N+1 and N+2; 0: free ones. Else 7869, 6881, 6880.")
    ] = None,
) -> None:
    """Run LavaLite on this machine, as this user. What runs already is left as it is."""
    from lavalite.cli.definition import apply_file, checked_file

    cluster = checked_file(pools).cluster if pools else ""
    folder = StateFolder(place.state_folder())
    with progress("starting") as tell:
        began = local_cluster.up(
            folder, is_ready, cluster=cluster or "local", node=node, port_base=port_base, tell=tell
        )
    record = began.record
    where = f"node {record.node}, state in {folder.path}, API at http://{LOOPBACK}:{record.ports.api}"
    if not began.started:
        say(f"runs already: {where}")
    elif len(began.started) < len(DAEMONS):
        say(f"started {' and '.join(began.started)}: {where}")
    else:
        say(f"up: {where}")
    if pools:
        with Place(state=folder.path).client() as client:
            apply_file(client, pools, check=False, purge=False)
    if began.started and find_place().state != folder.path:
        note(f"For other commands: export LAVALITE_STATE={folder.path}")


@at_place
def down(
    place: Place,
    keep_jobs: Annotated[bool, typer.Option("--keep-jobs", help="Let running attempts go on.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="Remove the state, too: jobs, definition, outputs.")] = False,
) -> None:
    """Stop what `up` started, and what runs on it. The state is kept for the next `up`."""
    folder = StateFolder(place.state_folder())
    with progress("stopping") as tell:
        ended = local_cluster.down(folder, keep_jobs=keep_jobs, purge=purge, tell=tell)
    if not ended.stopped and (keep_jobs or not ended.attempts):
        say("nothing was running")
    else:
        words = f"stopped {', '.join(ended.stopped) or 'nothing'}"
        count = len(ended.attempts)
        if count:
            noun, goes = ("attempt", "goes") if count == 1 else ("attempts", "go")
            words += f"; {count} running {noun} {f'{goes} on' if keep_jobs else 'ended'}"
        say(words)
    if purge:
        say(f"removed the state in {folder.path}")
