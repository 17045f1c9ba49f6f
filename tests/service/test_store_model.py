"""SQLite's file against a model that is too simple to be wrong: a dictionary for every revision."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lavalite.store.base import Compacted, Compare, LeaseLost, Put, TxnResult
from lavalite.store.sqlite_file import SqliteFile

KEYS = st.sampled_from(["/a", "/a/1", "/a/2", "/b", "/b/é"])
PREFIXES = st.sampled_from(["", "/", "/a", "/a/", "/b/é", "/c"])
VALUES = st.binary(max_size=3)
State = dict[str, tuple[bytes, int, int, int]]  # key → value, create revision, mod revision, lease


class FileAgainstModel(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.now = 100.0
        self.open()
        self.revision = 1
        self.compacted = 0
        self.states: dict[int, State] = {1: {}}
        self.events: dict[int, set[tuple[str, str, bytes]]] = {}
        self.leases: dict[int, tuple[int, float]] = {}

    def open(self) -> None:
        path = Path(self.folder.name) / "s.db"
        self.file = SqliteFile(path, boottime=lambda: self.now, busy_seconds=1, history_revisions=1_000_000)

    def teardown(self) -> None:
        if hasattr(self, "file"):
            self.file.close()
            self.folder.cleanup()

    # the model

    def apply(self, puts: list[Put], deletes: list[str]) -> None:
        state = dict(self.states[self.revision])
        gone = [key for key in deletes if key in state]
        if not puts and not gone:
            return
        self.revision += 1
        for put in puts:
            created = state[put.key][1] if put.key in state else self.revision
            state[put.key] = (put.value, created, self.revision, put.lease_id)
        for key in gone:
            del state[key]
        self.states[self.revision] = state
        self.events[self.revision] = {("put", put.key, put.value) for put in puts}
        self.events[self.revision] |= {("delete", key, b"") for key in gone}

    def end_leases(self, lease_ids: list[int]) -> None:
        self.apply([], [key for key, kept in self.states[self.revision].items() if kept[3] in lease_ids])
        for lease_id in lease_ids:
            self.leases.pop(lease_id, None)

    def expire(self) -> None:
        self.end_leases([lease_id for lease_id, (_, deadline) in self.leases.items() if deadline <= self.now])

    def holds(self, compare: Compare) -> bool:
        kept = self.states[self.revision].get(compare.key)
        if compare.target == "value":
            return kept is not None and kept[0] == compare.expected
        return compare.expected == (0 if kept is None else kept[1 if compare.target == "create_revision" else 2])

    # what happens to both

    @rule(puts=st.dictionaries(KEYS, VALUES, max_size=3), deletes=st.sets(KEYS, max_size=3), data=st.data())
    def txn(self, puts: dict[str, bytes], deletes: set[str], data: st.DataObject) -> None:
        lease_id = data.draw(st.sampled_from([0, *self.leases, 77]), "lease")
        revisions = st.sampled_from([0, self.revision, max(self.revision - 1, 0)])
        compares = data.draw(
            st.lists(
                st.one_of(
                    st.builds(Compare.absent, KEYS),
                    st.builds(Compare.created_at, KEYS, revisions),
                    st.builds(Compare.unchanged, KEYS, revisions),
                    st.builds(Compare.equals, KEYS, VALUES),
                ),
                max_size=2,
            )
        )
        operations = [Put(key, value, lease_id) for key, value in puts.items()]
        removed = sorted(deletes - set(puts))
        before = self.revision
        self.expire()
        if not all(self.holds(compare) for compare in compares):
            assert self.file.txn(compares, operations, removed) == TxnResult(False, self.revision)
        elif operations and lease_id and lease_id not in self.leases:
            with pytest.raises(LeaseLost):
                self.file.txn(compares, operations, removed)
            assert self.file.size()[0] == self.revision >= before
        else:
            self.apply(operations, removed)
            assert self.file.txn(compares, operations, removed) == TxnResult(True, self.revision)

    @rule(ttl_seconds=st.integers(1, 5))
    def grant(self, ttl_seconds: int) -> None:
        self.expire()
        self.leases[self.file.grant(ttl_seconds)] = (ttl_seconds, self.now + ttl_seconds)

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(data=st.data())
    def keepalive(self, data: st.DataObject) -> None:
        lease_id = data.draw(st.sampled_from([77, *self.leases]), "lease")
        self.expire()
        if lease_id not in self.leases:
            with pytest.raises(LeaseLost):
                self.file.keepalive(lease_id)
            return
        ttl_seconds = self.leases[lease_id][0]
        self.leases[lease_id] = (ttl_seconds, self.now + ttl_seconds)
        assert self.file.keepalive(lease_id) == ttl_seconds

    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        lease_id = data.draw(st.sampled_from([77, *self.leases]), "lease")
        self.expire()
        self.end_leases([lease_id])
        self.file.revoke(lease_id)

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        self.expire()
        revision = data.draw(st.integers(1, self.revision), "revision")
        self.file.compact(revision)
        self.compacted = max(self.compacted, revision)

    @rule()
    def reopen(self) -> None:
        self.file.close()
        self.open()

    # what must hold

    @rule(prefix=PREFIXES, limit=st.integers(1, 4), data=st.data())
    def pages(self, prefix: str, limit: int, data: st.DataObject) -> None:
        self.expire()
        revision = data.draw(st.integers(1, self.revision), "revision")
        if revision < self.compacted:
            with pytest.raises(Compacted):
                self.file.range(prefix, limit, None, revision)
            return
        found: State = {}
        after: str | None = None
        while True:
            page = self.file.range(prefix, limit, after, revision)
            assert page.revision == revision
            for record in page.records:
                assert record.key not in found
                found[record.key] = (record.value, record.create_revision, record.mod_revision, record.lease_id)
            after = page.next_after
            if after is None:
                break
        expected = {key: kept for key, kept in self.states[revision].items() if key.startswith(prefix)}
        assert found == expected
        assert list(found) == sorted(expected)

    @rule(prefix=PREFIXES, data=st.data())
    def history(self, prefix: str, data: st.DataObject) -> None:
        self.expire()
        revision = data.draw(st.integers(1, self.revision + 1), "revision")
        if revision < self.compacted:
            with pytest.raises(Compacted):
                self.file.events(prefix, revision)
            return
        events, last = self.file.events(prefix, revision)
        assert last == self.revision
        for at in range(revision, last + 1):
            seen = {(e.kind, e.record.key, e.record.value) for e in events if e.record.mod_revision == at}
            assert seen == {event for event in self.events.get(at, set()) if event[1].startswith(prefix)}

    @invariant()
    def the_present_is_the_newest_state(self) -> None:
        self.expire()
        page = self.file.range("", 1000, None, 0)
        assert page.revision == self.revision
        assert {r.key for r in page.records} == set(self.states[self.revision])


FileAgainstModel.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestFileAgainstModel = FileAgainstModel.TestCase
