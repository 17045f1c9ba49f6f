"""Pages of at most 1,000 items, in the order of a text key; the cursor is the key of the last item."""

from __future__ import annotations

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
    """The first `limit` kept items whose key is greater than `cursor`. `items` are in the order of their keys.

    No more of them are made than the page needs.
    """
    found: list[Item] = []
    for item in items:
        if key(item) > cursor and keep(item):
            if len(found) == limit:
                return Page(items=found, next_cursor=key(found[-1]))
            found.append(item)
    return Page(items=found)


def words(text: str) -> frozenset[str]:
    """What is separated by commas in a query, such as states; empty where nothing is said."""
    return frozenset(filter(None, text.split(",")))
