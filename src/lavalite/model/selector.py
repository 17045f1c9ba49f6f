"""The one evaluator of label selectors: which nodes a pool or a link means. No templates, no facts.

    {group: lavalite_gpu, rack: [r1, r2]}     every label must match; a list means any of them
    n[01:04]   n*   n0?   "n01, n07"          patterns of node names; [01:04] keeps its zeros, [0:8:2] steps
    [n01, n[05:08]]                           a list of patterns means any of them

Labels of a node are lists of text (model.resources.NodeOffer.labels). The label `group` holds the Ansible groups of
a node; a node without that label is one whose groups are not known, and `may_match` gives it the benefit of doubt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from lavalite.base.errors import InputError

GROUP = "group"
MAX_PATTERN_CHARACTERS = 256
MAX_STARS = 4
Labels = Mapping[str, Sequence[str]]
LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_RANGE = re.compile(r"\[([0-9]{1,9}|[a-zA-Z]):([0-9]{1,9}|[a-zA-Z])(?::([0-9]{1,9}))?\]")
_WRITE = "Write a mapping of labels, {rack: r1}, or a pattern of node names, n[01:04]."


class _Span(NamedTuple):
    """One `[01:04]`: what the text in its place may be."""

    first: str
    last: str
    step: int

    def holds(self, text: str) -> bool:
        if not self.first.isdigit():
            return self.first <= text <= self.last and (ord(text) - ord(self.first)) % self.step == 0
        low, high, number = int(self.first), int(self.last), int(text)
        width = len(self.first) if self.first.startswith("0") else 0
        spelled = str(number).zfill(width)
        return spelled == text and low <= number <= high and (number - low) % self.step == 0


@dataclass(slots=True, frozen=True)
class Selector:
    """Either `labels` (all must match) or `patterns` (any must match); the other is empty."""

    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    patterns: tuple[str, ...] = ()

    @classmethod
    def parse(cls, value: object) -> Selector:
        """A selector as it is written. Raises InputError."""
        if isinstance(value, Mapping):
            return cls(labels=_labels(value))
        patterns = [value] if isinstance(value, str) else value
        if not isinstance(patterns, list) or not all(isinstance(item, str) for item in patterns):
            raise InputError("this selects no nodes", code="bad_selector", hint=_WRITE)
        names = tuple(name.strip() for item in patterns for name in _split(item))
        if not names or not all(names):
            raise InputError("a pattern is empty", code="bad_selector", hint=_WRITE)
        for name in names:
            _compiled(name)
        return cls(patterns=names)

    def matches(self, node: str, labels: Labels) -> bool:
        """Whether the node is selected. Unknown groups do not match."""
        if self.patterns:
            return any(_pattern_matches(pattern, node) for pattern in self.patterns)
        return all(set(values) & set(labels.get(label, ())) for label, values in self.labels.items())

    def may_match(self, node: str, labels: Labels) -> bool:
        """As `matches`, but a node whose groups are not known may be in any."""
        if self.matches(node, labels):
            return True
        if self.patterns or GROUP in labels:
            return False
        rest = Selector({label: values for label, values in self.labels.items() if label != GROUP})
        return rest.matches(node, labels)

    def spelled(self) -> str:
        """As people write it."""
        if self.patterns:
            return ", ".join(self.patterns)
        words = (f"{k}: {v[0] if len(v) == 1 else '[' + ', '.join(v) + ']'}" for k, v in self.labels.items())
        return "{" + ", ".join(words) + "}"


def _labels(value: Mapping[object, object]) -> dict[str, tuple[str, ...]]:
    if not value:
        raise InputError("an empty selector", code="bad_selector", hint="Write '*' for all nodes.")
    labels: dict[str, tuple[str, ...]] = {}
    for label, wanted in value.items():
        if not isinstance(label, str) or not LABEL.fullmatch(label):
            hint = "Write letters, digits, _, . and -, beginning with a letter."
            raise InputError(f"{str(label)[:40]!r} is no label", code="bad_selector", hint=hint)
        items = wanted if isinstance(wanted, list) else [wanted]
        if not items or not all(_is_word(item) for item in items):
            hint = f"Write {label}: x, or {label}: [x, y] for any of them."
            raise InputError(f"label {label} has no value to match", code="bad_selector", hint=hint)
        labels[label] = tuple(str(item) for item in items)
    return labels


def _is_word(item: object) -> bool:
    return (isinstance(item, str) and bool(item)) or (isinstance(item, int) and not isinstance(item, bool))


def _split(text: str) -> list[str]:
    return text.split(",")


def _pattern_matches(pattern: str, node: str) -> bool:
    expression, spans = _compiled(pattern)
    found = expression.fullmatch(node)
    return found is not None and all(span.holds(text) for span, text in zip(spans, found.groups(), strict=True))


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> tuple[re.Pattern[str], tuple[_Span, ...]]:
    """A pattern as an expression with a group for each range. Raises InputError."""
    if len(pattern) > MAX_PATTERN_CHARACTERS or pattern.count("*") > MAX_STARS:
        hint = f"Name the nodes by a label, or write at most {MAX_STARS} stars."
        raise InputError(f"pattern {pattern[:40]} is too long", code="bad_selector", hint=hint)
    expression, spans, at = "", [], 0
    while at < len(pattern):
        span = _RANGE.match(pattern, at)
        if span:
            spans.append(_span(span))
            expression += "([0-9]{1,9})" if span[1].isdigit() else "([a-zA-Z])"
            at = span.end()
            continue
        expression += _piece(pattern, pattern[at])
        at += 1
    return re.compile(expression), tuple(spans)


def _piece(pattern: str, character: str) -> str:
    if character in "[]":
        hint = "Write a range as [01:04]."
        raise InputError(f"{pattern} has brackets that are no range", code="bad_selector", hint=hint)
    if not (character.isalnum() or character in "*?._-"):
        raise InputError(f"{pattern} is no pattern of node names", code="bad_selector", hint=_WRITE)
    return {"*": ".*", "?": "."}.get(character, re.escape(character))


def _span(match: re.Match[str]) -> _Span:
    first, last, step = match[1], match[2], int(match[3] or 1)
    hint = "Write it as [01:04]: first, last, both of one width where there are zeros."
    same_kind = first.isdigit() == last.isdigit() and first.islower() == last.islower()
    if not same_kind or step == 0 or (first.startswith("0") and len(first) > 1 and len(first) != len(last)):
        raise InputError(f"{match[0]} is no range", code="bad_selector", hint=hint)
    if (int(last) < int(first)) if first.isdigit() else (last < first):
        raise InputError(f"{match[0]} ends before it begins", code="bad_selector", hint=hint)
    return _Span(first, last, step)
