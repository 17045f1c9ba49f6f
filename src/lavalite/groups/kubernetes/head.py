"""The head of the ledger: one ConfigMap that each change swaps, and that says what the last change is.

data:  storage   where groups are: computegroups, or configmaps; whoever comes later goes by it
       change    its number, 1 more than the one before
       writer    who wrote it: a name that is used for one change only
       intent    {"puts": {key: text}, "deletes": [key]}, or {"parts": n} where that is too large for one object
       deleted   {key: change}: the last that were deleted, so that a write that comes late is known as such
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from lavalite.base.errors import UnreachableError
from lavalite.groups.kubernetes.storage import LEDGER, Where, text_of, value_of

Json = dict[str, Any]
HEAD = "lavalite-groups"
MOST_INTENT_CHARACTERS = 400_000
"""An object has at most 1 MiB, and a ConfigMap no more of data."""
MOST_DELETED, MOST_WRITERS = 64, 64


@dataclass(slots=True, frozen=True)
class Intent:
    """What a change writes."""

    puts: Mapping[str, bytes] = field(default_factory=dict)
    deletes: Sequence[str] = ()

    def text(self) -> str:
        puts = {key: text_of(value) for key, value in self.puts.items()}
        return json.dumps({"puts": puts, "deletes": list(self.deletes)}, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> Intent:
        read = json.loads(text)
        return cls({key: value_of(value) for key, value in read["puts"].items()}, tuple(read["deletes"]))


@dataclass(slots=True, frozen=True)
class Head:
    where: Where
    change: int = 0
    writers: Mapping[int, str] = field(default_factory=dict)
    intent: str = Intent().text()
    deleted: Mapping[str, int] = field(default_factory=dict)
    version: str = ""
    """resourceVersion, by which it is swapped."""

    @property
    def writer(self) -> str:
        return self.writers.get(self.change, "")

    @property
    def parts(self) -> int:
        return int(json.loads(self.intent[:40]).get("parts", 0)) if self.intent.startswith('{"parts"') else 0

    def next(self, intent: Intent, text: str, writer: str) -> Head:
        """The head after this one, with an intent that is written as `text`."""
        change = self.change + 1
        deleted = {key: at for key, at in self.deleted.items() if key not in intent.puts}
        deleted |= dict.fromkeys(intent.deletes, change)
        kept = dict(sorted(deleted.items(), key=lambda item: item[1])[-MOST_DELETED:])
        writers = dict(sorted({**self.writers, change: writer}.items())[-MOST_WRITERS:])
        return replace(self, change=change, writers=writers, intent=text, deleted=kept)

    def object(self) -> Json:
        meta: Json = {"name": HEAD, "labels": {LEDGER: "head"}}
        if self.version:
            meta["resourceVersion"] = self.version
        data = {
            "storage": self.where,
            "change": str(self.change),
            "writers": json.dumps(self.writers, separators=(",", ":")),
            "intent": self.intent,
            "deleted": json.dumps(self.deleted, separators=(",", ":")),
        }
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}

    @classmethod
    def read(cls, obj: Json) -> Head:
        """Raises UnreachableError where it is not what we wrote."""
        try:
            data = obj["data"]
            where = cast(Where, {"computegroups": "computegroups", "configmaps": "configmaps"}[data["storage"]])
            change, deleted = int(data["change"]), json.loads(data["deleted"])
            version = str(obj["metadata"]["resourceVersion"])
            writers = {int(at): str(writer) for at, writer in json.loads(data["writers"]).items()}
            return cls(where, change, writers, str(data["intent"]), deleted, version)
        except (KeyError, TypeError, ValueError) as error:
            hint = "Somebody else has changed it; restore it from a backup."
            raise UnreachableError(f"ConfigMap {HEAD} is no head of a ledger", hint=hint) from error


def part_name(writer: str, number: int) -> str:
    return f"lavalite-part-{writer}-{number}"


def part_objects(text: str, writer: str, change: int) -> list[Json]:
    """The text of an intent that is too large, cut. `change` is the one that they are for."""
    size = MOST_INTENT_CHARACTERS // 2  # what is not ASCII has up to 4 bytes a character
    cut = [text[i : i + size] for i in range(0, len(text), size)]
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": part_name(writer, number), "labels": {LEDGER: "part"}},
            "data": {"change": str(change), "writer": writer, "text": piece},
        }
        for number, piece in enumerate(cut)
    ]
