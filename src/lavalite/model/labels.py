"""Labels that a person gives to a node: what they may be, and how a change is made to them.

They go over the labels that the node's LIM tells: where both have one, the person's holds. Only `group` cannot be
given this way: a node's Ansible groups are what the inventory says, in every place that asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lavalite.base.errors import Fault, InputError
from lavalite.model.selector import GROUP, LABEL

MAX_LABELS = 64
MAX_VALUES = 64
MAX_VALUE_CHARACTERS = 200

Labels = dict[str, list[str]]


def changed_labels(before: Labels, change: Mapping[str, Sequence[str] | None], *, purge: bool = False) -> Labels:
    """`before` with what `change` says of single labels; None takes one away. With `purge` no other is left.

    Raises InputError with all faults at once.
    """
    faults = list(_faults(change))
    wanted = {label: list(dict.fromkeys(values)) for label, values in change.items() if values is not None}
    kept = {} if purge else {label: values for label, values in before.items() if label not in change}
    after = kept | wanted
    if len(after) > MAX_LABELS:
        message = f"the node would have {len(after)} labels, at most {MAX_LABELS} can be given"
        faults.append(Fault("too_many", message, field="labels", hint="Take some away."))
    if faults:
        raise InputError(faults=faults)
    return dict(sorted(after.items()))


def _faults(change: Mapping[str, Sequence[str] | None]) -> Iterator[Fault]:
    for label, values in change.items():
        field = f"labels.{label[:40]}"
        if not LABEL.fullmatch(label):
            hint = "Write letters, digits, _, . and -, beginning with a letter."
            yield Fault("bad_label", f"{label[:40]!r} is no label", field="labels", hint=hint)
        elif label == GROUP:
            hint = "Put the node into the group in the inventory, and run site.yml."
            yield Fault("bad_label", "a node's groups are those of the inventory", field=field, hint=hint)
        elif values is not None and not 0 < len(values) <= MAX_VALUES:
            hint = f"Write one to {MAX_VALUES} values, or null to take the label away."
            yield Fault("bad_label", f"label {label} has {len(values)} values", field=field, hint=hint)
        elif values is not None and not all(map(_is_value, values)):
            hint = f"Write 1 to {MAX_VALUE_CHARACTERS} printable characters, with none of them a blank at an end."
            yield Fault("bad_label", f"label {label} has a value that is none", field=field, hint=hint)


def _is_value(value: str) -> bool:
    return 0 < len(value) <= MAX_VALUE_CHARACTERS and value.isprintable() and value == value.strip()
