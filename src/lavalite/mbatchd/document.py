"""The definition as it is stored: pools.yml as it was applied, merged with entries that were put one by one.

One JSON document: the sections as they were typed, which entries the document itself owns (as opposed to those put
one by one), which logical hosts are to go (so that a new leader goes on with that), and a version that grows with
each change.
"""

from __future__ import annotations

import json
from typing import Any

from lavalite.control.events import Specs
from lavalite.model.pools import DEFINED, pools_from


def decode_document(stored: bytes, cluster: str) -> dict[str, Any]:
    """The stored document, or an empty one. Sections that this release does not know are kept."""
    empty = {
        "version": 0,
        "cluster": cluster,
        "pools": {},
        "logical_hosts": {},
        "queues": {},
        "links": [],
        "owned": {},
        "leaving": [],
    }
    return {**empty, **(json.loads(stored) if stored else {})}


def sections(document: dict[str, Any]) -> dict[str, Any]:
    """What is applied to a cluster."""
    return {section: document[section] for section in DEFINED}


def typed(document: dict[str, Any]) -> dict[str, Any]:
    """What pools.yml would say."""
    return {"plugin": "lavalite.cluster.pools", "cluster": document["cluster"], **sections(document)}


def stored_specs(stored: bytes, cluster: str) -> Specs:
    """What a stored document means. It was checked when it was applied."""
    return Specs.of(pools_from(typed(decode_document(stored, cluster))))
