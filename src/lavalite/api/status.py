"""How the cluster is, for people and probes."""

from __future__ import annotations

from typing import Any

from lavalite.api.shapes import Shape


class Headroom(Shape):
    """`what` is jobs, `jobs of USER`, tasks, commit queue, or (in bytes) store and store file."""

    what: str
    used: int
    most: int


class Status(Shape):
    """`lim` is master or backup; `counts` are jobs by state and nodes by state."""

    cluster: str
    node: str
    lim: str
    mbatchd: str
    epoch: tuple[int, int] | None
    version: str
    started_at: float
    now: float
    store: dict[str, Any] = {}
    nodes: dict[str, int] = {}
    jobs: dict[str, int] = {}
    tasks: dict[str, int] = {}
    commitments: int = 0
    quarantined: int = 0
    """Attempts that agents run and that nobody here knows; see /v1/quarantine."""
    loop_lag_ms: float = 0.0
    headroom: list[Headroom] = []
    """Of what is limited, how much there is: where it reaches the most, submits are told to come again later."""
    refuses: str = ""
    """Why all submits are refused at the moment; empty while they are not."""
    api_url: str = ""


class Health(Shape):
    """What anybody may know. `tasks` are those that hold something: committed, running, suspended, unknown."""

    lim: str
    mbatchd: str
    node: str
    version: str
    tasks: int
