"""What parse_yaml reads, where it says it stood, and every surprise it refuses, all at once."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lavalite.base.errors import InputError
from lavalite.base.yamlfile import dotted, line_of, parse_yaml


def sentences(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "pools.yml")
    return [fault.sentence() for fault in caught.value.faults]


def test_values_and_their_lines() -> None:
    value, lines = parse_yaml("a: 1\nb:\n  c: [x, 2.5]\n  d: {e: null}\n4711: 'no'\n", "f.yml")
    assert value == {"a": 1, "b": {"c": ["x", 2.5], "d": {"e": None}}, "4711": "no"}
    assert lines[("a",)] == 1
    assert lines[("b", "c")] == 3
    assert lines[("b", "c", 1)] == 3
    assert lines[("b", "d", "e")] == 4
    assert lines[("4711",)] == 5
    assert line_of(lines, ("b", "d", "missing", "deeper")) == 4
    assert dotted(("links", 0, "from")) == "links[0].from"


def test_what_looks_like_text_stays_text() -> None:
    value, _ = parse_yaml("a: 2024-01-01\nb: 1e3\nc: '010'\nd: \"15:30\"\ne: |\n  no\nf: 10.0.0.1:80\n", "f.yml")
    assert value == {
        "a": "2024-01-01",
        "b": "1e3",
        "c": "010",
        "d": "15:30",
        "e": "no\n",
        "f": "10.0.0.1:80",
    }


def test_an_empty_text_is_none() -> None:
    assert parse_yaml("", "f.yml") == (None, {(): 1})
    assert parse_yaml("# only a comment\n", "f.yml")[0] is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 15:30", "a: YAML reads 15:30 as 930. Write '15:30' in quotes, or 15m30s for a duration."),
        ("a: 1:30:05", "a: YAML reads 1:30:05 as 5405. Write '1:30:05' in quotes, or 1h30m5s for a duration."),
        ("a: 1:30.5", "a: YAML reads 1:30.5 as 90. Write '1:30.5' in quotes."),
        ("a: 010", "a: YAML reads 010 as an octal number. Write 10, or '010' in quotes for the text."),
        ("a: -010", "a: YAML reads -010 as an octal number. Write -10, or '-010' in quotes for the text."),
        ("a: no", "a: YAML reads no as false. Write false, or 'no' in quotes for the text."),
        ("a: Yes", "a: YAML reads Yes as true. Write true, or 'Yes' in quotes for the text."),
        ("a: ON", "a: YAML reads ON as true. Write true, or 'ON' in quotes for the text."),
        ("a: off", "a: YAML reads off as false. Write false, or 'off' in quotes for the text."),
        ("a: 0x1F", "a: YAML reads 0x1F as 31. Write 31, or '0x1F' in quotes for the text."),
        ("a: 0b11", "a: YAML reads 0b11 as 3. Write 3, or '0b11' in quotes for the text."),
        ("a: 1_000", "a: YAML reads 1_000 as 1000. Write 1000, or '1_000' in quotes for the text."),
        ("a: .inf", "a: .inf is no number one can count with. Write a number, or '.inf' in quotes for the text."),
        ("a: " + "9" * 5000, "a: a number of more than 40 digits. Write a unit: 3TiB."),
        ("a: &x 1\nb: *x", "b: alias *x is not read. Write the value out."),
        ("a: !vault x", "a: tag !vault is not read. Write the plain value."),
        ("a: !!python/name:os.system x", "a: tag !!python/name:os.system is not read. Write the plain value."),
        ("<<: {a: 1}", "the merge key << is not read. Write the entries out."),
        ("a: 1\na: 2", "a: written twice. It stands in line 1 already: keep one of the two."),
        ("no: 1", "no: YAML reads no as false. Write false, or 'no' in quotes for the text."),
        ("true: 1", "key true is not text. Write 'true' in quotes."),
        ("? [a]\n: 1", "a key must be text. Write a name before the colon."),
        ("a: 1\n---\nb: 1", "a second document begins here. Keep one a file."),
    ],
)
def test_each_surprise_names_the_spelling_that_was_meant(text: str, sentence: str) -> None:
    [found] = sentences(text)
    assert found.partition(": ")[2] == sentence
    assert found.startswith("pools.yml:")


def test_all_faults_at_once_with_their_lines() -> None:
    found = sentences("a: no\nb: {c: 010, c: 1}\nd:\n  - 15:30\n")
    assert [s.split(": ")[0] for s in found] == ["pools.yml:1", "pools.yml:2", "pools.yml:2", "pools.yml:4"]
    assert [s.split(": ")[1] for s in found] == ["a", "b.c", "b.c", "d[0]"]


@pytest.mark.parametrize("text", ["a: b: c", "a: [1,", "\ta: 1", "a: \x01", "a: '", "%YAML 9", "\ud800"])
def test_a_syntax_error_has_a_line(text: str) -> None:
    [found] = sentences(text)
    assert found.startswith("pools.yml:1: this is not") or "may not stand" in found


def test_no_bomb_goes_off() -> None:
    laughs = "a: &a [x,x]\n" + "\n".join(f"l{n}: &l{n} [*a,*a,*a,*a]" for n in range(200))
    assert len(sentences(laughs)) == 100
    assert sentences("[" * 300_000) == [
        "pools.yml:1: [0][0][0][0]: more than 64 levels deep. Flatten it.",
    ]


_words = st.text(alphabet="abcxyz019_:. -", min_size=0, max_size=6)
_values = st.recursive(
    _words | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=12,
)


@given(_values)
@settings(max_examples=80, deadline=None)
def test_what_was_quoted_comes_back_as_it_was(value: object) -> None:
    """Law: a document in which all text is quoted is read as it was written."""
    assert parse_yaml(_quoted(value), "f.yml")[0] == value


def _quoted(value: object) -> str:
    """Flow style, all text in single quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(k)}: {_quoted(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_quoted(item) for item in value) + "]"
    if isinstance(value, str):
        return "'" + value + "'"
    return {None: "null", True: "true", False: "false"}[value] if not _number(value) else str(value)  # type: ignore[index]


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@example("-.0")
@given(st.text(alphabet="01279xXbBoOeE_:.+-yesnotrufalTF", min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_plain_scalar_is_refused_or_read_as_other_readers_do(text: str) -> None:
    """Law: what is accepted as a number or boolean is what PyYAML's own safe loader makes of it."""
    try:
        value, _ = parse_yaml(f"a: {text}", "f.yml")
    except InputError:
        return
    if isinstance(value, dict) and isinstance(value.get("a"), int | float):
        assert yaml.safe_load(f"a: {text}") == value
