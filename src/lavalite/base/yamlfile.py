"""YAML as people write it: line numbers kept, and nothing read as something other than it looks.

YAML 1.1 reads `15:30` as 930, `010` as 8 and `no` as false. Here each of these is a fault that shows the spelling
that was meant. Aliases, merge keys and tags are refused as well: what is read is what stands there, so that no
small file grows into a large document and every value has a line of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from lavalite.base.errors import Fault, InputError

Path = tuple[str | int, ...]
"""Where a value is: keys and list positions (from 0), as in `("links", 0, "from")`."""

MAX_DEPTH = 64
MAX_DIGITS = 40
MAX_FAULTS = 100

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FRACTION = re.compile(r"([-+]?[0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_UNDERSCORES = re.compile(r"[-+]?[1-9][0-9]*_[0-9_]*(\.[0-9_]*)?")
_OTHER_BASE = re.compile(r"[-+]?0(x_*[0-9a-fA-F][0-9a-fA-F_]*|b_*[01][01_]*)")
_SEXAGESIMAL = re.compile(r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_SURPRISING_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


@dataclass(slots=True, frozen=True)
class YamlText:
    """What was read of a text: with `faults`, as far as it can be read all the same.

    `whole` is false where reading had to end early; then `value` is None.
    """

    value: Any
    lines: dict[Path, int]
    faults: list[Fault]
    whole: bool


def read_yaml(text: str, file: str) -> YamlText:
    """As `parse_yaml`, but the faults are a value: for a reader that wants to find its own as well."""
    builder = _Builder(text, file)
    value = builder.document()
    return YamlText(value, builder.lines, builder.faults, builder.whole)


def parse_yaml(text: str, file: str) -> tuple[Any, dict[Path, int]]:
    """The one document in `text`, and the line (from 1) of every value in it by path.

    A mapping's value has the line of its key. Numbers without a fraction are int, others float; keys are always
    text; dates stay text; an empty text is None. `file` is only a name for messages; it may be empty.
    Raises InputError with every fault found; a syntax error ends the search.
    """
    read = read_yaml(text, file)
    if read.faults:
        raise InputError(faults=read.faults)
    return read.value, read.lines


def dotted(path: Path) -> str:
    """A path as people read it: `links[0].from`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def line_of(lines: Mapping[Path, int], path: Path) -> int:
    """The line of a value, or of the nearest thing around it that has one (a missing field has none); else 0."""
    for length in range(len(path), -1, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 0


class _TooMuchError(Exception):
    """Reading cannot go on; the fault is noted already."""


class _Builder:
    """Builds values from the parser's events: no alias is ever expanded, and depth is bounded."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._events: Iterator[Any] = iter(())
        self.lines: dict[Path, int] = {(): 1}
        self.faults: list[Fault] = []
        self.whole = False

    def document(self) -> Any:
        """The value, or None with `faults` filled."""
        try:
            self._events = iter(yaml.parse(self._text, Loader=_Loader))
            value = self._only_document()
            self.whole = True
            return value
        except _TooMuchError:
            pass
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = min(mark.line, self._text.count("\n")) + 1 if mark else 0
            problem = ", ".join(part for part in (error.context, error.problem) if part)
            self._syntax_fault(f"this is not YAML: {problem}", line)
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            self._syntax_fault(f"character {_character(error.character)} may not stand in YAML", line)
        except UnicodeEncodeError as error:
            line = self._text.count("\n", 0, error.start) + 1
            self._syntax_fault("this is not UTF-8 text", line)
        return None

    def _syntax_fault(self, message: str, line: int) -> None:
        hint = "Check indentation, brackets and quotes there, and use no tabs."
        self.faults.append(Fault("yaml_syntax", message, "", hint, self._file, line))

    def _fault(self, code: str, message: str, path: Path, hint: str, line: int) -> None:
        self.faults.append(Fault(code, message, dotted(path), hint, self._file, line))
        if len(self.faults) >= MAX_FAULTS:
            raise _TooMuchError

    def _only_document(self) -> Any:
        value: Any = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    line = _line(event)
                    self._fault("yaml_syntax", "a second document begins here", (), "Keep one a file.", line)
                    raise _TooMuchError
            elif isinstance(event, yaml.NodeEvent):
                value = self._value(event, ())
        return value

    def _value(self, event: Any, path: Path) -> Any:
        """The value that begins with `event`. Notes faults and goes on, so that all of them are found."""
        line = _line(event)
        self.lines.setdefault(path, line)
        if len(path) > MAX_DEPTH:
            self._fault("yaml_depth", f"more than {MAX_DEPTH} levels deep", path[:4], "Flatten it.", line)
            raise _TooMuchError
        if isinstance(event, yaml.AliasEvent):
            self._fault("yaml_alias", f"alias *{event.anchor} is not read", path, "Write the value out.", line)
            return None
        if event.tag is not None and event.tag != "!":
            name = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._fault("yaml_tag", f"tag {name} is not read", path, "Write the plain value.", line)
            event.tag = None
            if isinstance(event, yaml.ScalarEvent):
                return event.value
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return self._scalar(event, path, line)

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = _line(event)
            key = self._key(event, path, line)
            here = (*path, key)
            if key in entries:
                first = self.lines[here]
                hint = f"It stands in line {first} already: keep one of the two."
                self._fault("yaml_duplicate_key", "written twice", here, hint, line)
            self.lines.setdefault(here, line)
            value = self._value(next(self._events), here)
            entries.setdefault(key, value)
        return entries

    def _key(self, event: Any, path: Path, line: int) -> str:
        """A key as text. What is not plain text (a list, null, true) is a fault."""
        if not isinstance(event, yaml.ScalarEvent):
            self._fault("yaml_key", "a key must be text", path, "Write a name before the colon.", line)
            self._value(event, (*path, "?"))
            return "?"
        if event.value == "<<" and event.implicit[0]:
            hint = "Write the entries out."
            self._fault("yaml_alias", "the merge key << is not read", path, hint, line)
            return "<<"
        key = str(event.value)
        value = self._value(event, (*path, key))
        if value is None or isinstance(value, bool):
            self._fault("yaml_key", f"key {key or 'null'} is not text", path, f"Write '{key}' in quotes.", line)
        return key

    def _scalar(self, event: Any, path: Path, line: int) -> Any:
        text = str(event.value)
        if not event.implicit[0]:  # quoted, or a block: text, whatever it looks like
            return text
        if text in _NULLS:
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        surprise = _surprise(text)
        if surprise:
            message, hint = surprise
            self._fault("yaml_surprise", message, path, hint, line)
            return text
        if _DECIMAL.fullmatch(text):
            return int(text)
        if _FRACTION.fullmatch(text):
            return float(text)
        return text


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _surprise(text: str) -> tuple[str, str] | None:
    """What a YAML 1.1 reader makes of this plain text where that is not what it looks like, and what to write."""
    quoted = f"'{text}'"
    meant = _SURPRISING_BOOLEANS.get(text.lower())
    if meant and text in (text.lower(), text.upper(), text.capitalize()):
        return f"YAML reads {text} as {meant}", f"Write {meant}, or {quoted} in quotes for the text."
    if _SEXAGESIMAL.fullmatch(text):
        return _sexagesimal(text)
    if _LEADING_ZERO.fullmatch(text):
        number = _decimal_text(text)
        return f"YAML reads {text} as an octal number", f"Write {number}, or {quoted} in quotes for the text."
    if _OTHER_BASE.fullmatch(text):
        number = str(int(text.replace("_", ""), 0)) if len(text) <= MAX_DIGITS else "it in decimal"
        return f"YAML reads {text} as {number}", f"Write {number}, or {quoted} in quotes for the text."
    if _UNDERSCORES.fullmatch(text):
        plain = text.replace("_", "")
        return f"YAML reads {text} as {plain}", f"Write {plain}, or {quoted} in quotes for the text."
    if _NOT_FINITE.fullmatch(text) or (_FRACTION.fullmatch(text) and math.isinf(float(text))):
        return f"{text} is no number one can count with", f"Write a number, or {quoted} in quotes for the text."
    if len(text) > MAX_DIGITS and (_DECIMAL.fullmatch(text) or _FRACTION.fullmatch(text)):
        return f"a number of more than {MAX_DIGITS} digits", "Write a unit: 3TiB."
    return None


def _decimal_text(text: str) -> str:
    """`+0010` as `10`: without the zeros that make it octal."""
    sign = "-" if text.startswith("-") else ""
    digits = text.lstrip("+-").replace("_", "").lstrip("0") or "0"
    return sign + digits


def _sexagesimal(text: str) -> tuple[str, str]:
    """The fault of `15:30`: a time to people, 930 to YAML 1.1."""
    total = 0
    parts = text.lstrip("+-").partition(".")[0].replace("_", "").split(":")
    for part in parts[:8]:
        total = total * 60 + int(part[:MAX_DIGITS])
    hint = f"Write '{text}' in quotes"
    if len(parts) <= 3 and "." not in text and text[0] not in "+-":
        units = ("h", "m", "s")[-len(parts) :]
        duration = "".join(part.lstrip("0") + unit for part, unit in zip(parts, units, strict=True) if int(part))
        hint += f", or {duration} for a duration"
    return f"YAML reads {text} as {total}", hint + "."


def _character(character: Any) -> str:
    code = character if isinstance(character, int) else ord(str(character)[:1] or "?")
    return f"U+{code:04X}"
