"""The journal: all that was promised is read back, a torn end is cut off, damage is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.entry import Entry, restore, well_named
from lavalite.sbatchd.journal import Journal
from lavalite.sbatchd.keeper.line_log import LineLog
from lavalite.wire.frames import AttemptReport

records = st.fixed_dictionaries({"type": st.just("x"), "text": st.text(max_size=8), "n": st.integers()})


@given(batches=st.lists(st.lists(records, min_size=1, max_size=3), max_size=5), cut=st.integers(0, 2000))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_anywhere_leaves_whole_batches(tmp_path: Path, batches: list[list[dict]], cut: int) -> None:
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    log = LineLog(path)
    assert log.open() == []
    sizes = [0]
    for batch in batches:
        log.append(batch)
        sizes.append(path.stat().st_size)
    log.close()
    with path.open("r+b") as file:
        file.truncate(min(cut, sizes[-1]))
    whole = max(number for number, size in enumerate(sizes) if size <= cut)
    expected = [record for batch in batches[:whole] for record in batch]
    again = LineLog(path)
    assert again.open() == expected
    again.append([{"type": "after"}])
    again.close()
    assert LineLog(path).open() == [*expected, {"type": "after"}]


def test_a_name_for_life(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first = restore(journal.open()).journal_id
    journal.append([{"type": "epoch", "epoch": [1, 7]}])
    journal.close()
    restored = restore(Journal(tmp_path).open())
    assert first and restored.journal_id == first
    assert restored.highest_epoch == (1, 7)


def test_damage_before_the_end_is_said(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    journal.append([{"type": "epoch", "epoch": [1, 7]}])
    journal.append([{"type": "epoch", "epoch": [1, 8]}])
    journal.close()
    file = tmp_path / "journal"
    file.write_bytes(file.read_bytes().replace(b"[1,7]", b"[1,9]"))
    with pytest.raises(LavaLiteError, match=r"journal:2: the checksum is wrong\. Move it away"):
        Journal(tmp_path).open()


def test_compaction_says_the_same_in_less(tmp_path: Path) -> None:
    journal = Journal(tmp_path, compact_lines=10)
    held = journal.open()
    for n in range(20):
        journal.append([{"type": "epoch", "epoch": [1, n]}])
    assert journal.long
    (tmp_path / "journal.new").write_bytes(b"left by a crash")
    journal.compact([held[0], {"type": "epoch", "epoch": [1, 19]}])
    assert not journal.long
    journal.append([{"type": "epoch", "epoch": [1, 20]}])
    journal.close()
    again = restore(Journal(tmp_path).open())
    assert (again.journal_id, again.highest_epoch) == (held[0]["id"], (1, 20))
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]


@given(
    states=st.lists(st.sampled_from(["started", "suspended", "resumed", "ended"]), max_size=6),
    acknowledged=st.integers(0, 6),
)
def test_an_entry_is_read_back_as_it_was(states: list[str], acknowledged: int) -> None:
    entry = Entry("1.2.3", 1000, "/o", "/e", journalled_at=5.0)
    for number, state in enumerate(states):
        entry.report(AttemptReport(id="1.2.3", state=state, at=float(number), reason=state, pid=number))
    entry.acknowledge(min(acknowledged, len(states)))
    assert restore(entry.records()).entries["1.2.3"] == entry


@pytest.mark.parametrize("name", ["1.0.1", "4711.12.3"])
def test_names_of_attempts(name: str) -> None:
    assert well_named(name)


@pytest.mark.parametrize(
    "name", ["", "1", "1.2", "1.2.3.4", "../../x", "1.2.-3", "01.2.3", "1.2. 3", "1.2.3\n", "٣.1.1"]
)
def test_names_that_are_none(name: str) -> None:
    assert not well_named(name)
