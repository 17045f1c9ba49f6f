"""Pages of at most 1,000 items, in the order of a text key; the cursor is the key of the last item."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import TypeVar

from lavalite.api.models import Page

Item = TypeVar("Item")


def paged(
    items: Iterable[Item],
    key: Callable[[Item], str],
    limit: int,
    cursor: str,
    keep: Callable[[Item], bool] = lambda _: True,
) -> Page[Item]:
    """The first `limit` kept items whose key is greater than `cursor`."""
    found = heapq.nsmallest(limit + 1, (i for i in items if key(i) > cursor and keep(i)), key=key)
    more = len(found) > limit
    return Page(items=found[:limit], next_cursor=key(found[limit - 1]) if more else None)
