"""The numbers that the reconcilers go by. One place, one default each; mbatchd fills them from its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from lavalite.model.task import CHUNK_TASKS


@dataclass(slots=True, frozen=True)
class Settings:
    """All times in seconds."""

    max_placements: int = 1000
    """Most tasks placed in one call of `decide`; a Wake asks for the rest."""
    max_cancels: int = CHUNK_TASKS
    """Most tasks cancelled in one call of `decide`; a Wake asks for the rest."""
    max_searches: int = 8
    """Most times that one call of `decide` looks for a planned start; a Wake asks for the rest."""
    max_roused: int = 32
    """Of those that sleep, most that have their turn for a planned start in one call of `decide`; likewise."""
    max_looks: int = 256
    """Most shapes for which one call of `decide` finds no room; likewise."""
    max_rows_ahead: int = 200
    """Of so many rows one call of `decide` works out when what ends there."""
    plan_again_seconds: float = 10.0
    """For so long a planned start that still holds is not looked for again, nor one that was not found."""
    max_txn_operations: int = 128
    """Most writes in one action: the store's own limit."""
    max_txn_bytes: int = 1024 * 1024
    beat_seconds: float = 2.0
    silent_after_seconds: float = 10.0
    """A node whose agent was not heard of for this long gets nothing new."""
    backoff_first_seconds: float = 1.0
    backoff_factor: int = 2
    backoff_most_seconds: float = 300.0
    stop_grace_seconds: float = 10.0
    compose_seconds: float = 120.0
    """What is ordered for a host and not ready by then has failed."""
    let_go_seconds: float = 120.0
    """What is taken apart does not wait longer for a node that is not connected."""
    host_backoff_first_seconds: float = 30.0
    host_backoff_most_seconds: float = 600.0
    """A host that could not be composed, or resized, is tried again after the first, and then twice as long."""
    reattach_seconds: float = 30.0
    """For so long what a host lost is not attached anew, after it was tried."""
    reanchor_seconds: float = 60.0
    """For so long after a look whether far memory may come near, nothing is looked at."""
    keep_finished_jobs: int = 10_000
    keep_finished_seconds: float = 7 * 86400.0
    max_removals: int = 100
    """Most finished jobs removed in one tick."""
