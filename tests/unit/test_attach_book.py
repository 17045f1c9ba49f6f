"""What stands on a node × what is ordered of it: the laws of sbatchd.attach.book, under any orders and any crash."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavalite.sbatchd.attach.book import RANKS, Book
from lavalite.sbatchd.attach.records import Record
from lavalite.sbatchd.attach.roles import Key, Made
from lavalite.wire.frames import PartOrder, PartState

ROLES = ("circuit", "export", "disk", "swap", "vm")
PORTS = range(10900, 10904)


def order(part: str = "h/storage/n3", role: Any = "export", **more: Any) -> PartOrder:
    fields = {
        "host": "h",
        "incarnation": 1,
        "kind": "storage",
        "amount": 10,
        "peer": "n1",
        "peer_address": "10.0.0.1",
    }
    return PartOrder(part=part, role=role, **(fields | more))


def away(ordered: PartOrder) -> PartOrder:
    return ordered.model_copy(update={"want": "absent"})


def drain(book: Book) -> list[tuple[str, Key]]:
    """All work is done, one by one, and well; in which order."""
    done = []
    while found := book.work():
        for work in found:
            key = work.record.key
            done.append((work.verb, key))
            if work.verb == "make":
                book.made(key, Made(port=work.record.order.port))
            else:
                book.removed(key)
    return done


def told(book: Book) -> dict[str, tuple[str, str]]:
    return {f"{state.part}:{state.role}:{state.incarnation}": (state.state, state.reason) for state in book.picture()}


@pytest.fixture
def book() -> Book:
    return Book((), ROLES, PORTS)


def test_a_circuit_is_laid_first_and_taken_up_last(book: Book) -> None:
    ordered = [order("a", "disk", address="10.0.0.3", port=1), order("c", "circuit"), order("b", "export")]
    book.order(ordered)
    assert [key.role for _, key in drain(book)] == ["circuit", "export", "disk"]
    book.order([away(each) for each in ordered])
    removed = [key.role for verb, key in drain(book) if verb == "remove"]
    assert removed == ["disk", "export", "circuit"]
    assert {state for state, _ in told(book).values()} == {"gone"}


def test_an_export_keeps_its_port_and_another_gets_another(book: Book) -> None:
    book.order([order("a"), order("b")])
    drain(book)
    ports = {record.key.part: record.order.port for record in book.records.values()}
    assert ports == {"a": 10900, "b": 10901}
    book.order([order("a", version=2, amount=20), order("b")])
    assert {record.key.part: record.order.port for record in book.records.values()} == ports
    assert [key.part for _, key in drain(book)] == ["a"]
    assert {state.port for state in book.picture()} == set(ports.values())


def test_a_port_that_something_else_has_is_not_given(book: Book) -> None:
    book = Book((), ROLES, PORTS, lambda port: port != 10900)
    book.order([order(str(number)) for number in range(4)])
    assert sorted(record.order.port for record in book.records.values()) == [10901, 10902, 10903]
    assert told(book)["3:export:1"] == ("failed", "all of export_ports are taken on this node")


def test_what_is_not_named_stays(book: Book) -> None:
    book.order([order("a")])
    drain(book)
    assert book.order([]) == [] and drain(book) == []
    assert told(book) == {"a:export:1": ("ready", "")}


def test_another_incarnation_waits_until_the_first_is_ordered_away(book: Book) -> None:
    first, second = order("a"), order("a", incarnation=2)
    book.order([first])
    drain(book)
    book.order([second])
    assert drain(book) == []
    assert told(book)["a:export:2"] == ("failed", "another incarnation stands: it has to be ordered away first")
    book.order([away(first), second])
    drain(book)
    assert told(book) == {"a:export:1": ("gone", ""), "a:export:2": ("ready", "")}


def test_swap_is_one_hosts_alone(book: Book) -> None:
    book.order([order("a", "swap", address="10.0.0.3", port=1), order("b", "swap", host="other")])
    drain(book)
    state, reason = told(book)["b:swap:1"]
    assert state == "failed" and "the far memory of h is here already" in reason


def test_ordered_again_while_it_goes_it_is_made_anew_after_that(book: Book) -> None:
    book.order([order("a")])
    drain(book)
    book.order([away(order("a"))])
    (removing,) = book.work()
    book.order([order("a", version=3)])
    assert not book.work()
    book.removed(removing.record.key)
    assert [verb for verb, _ in drain(book)] == ["make"]
    assert told(book) == {"a:export:1": ("ready", "")}


def test_ordered_away_while_it_is_made_it_goes_after_that(book: Book) -> None:
    book.order([order("a")])
    (making,) = book.work()
    book.order([away(order("a"))])
    assert not book.work()
    book.made(making.record.key, Made())
    assert [verb for verb, _ in drain(book)] == ["remove"]


def test_what_failed_is_tried_again_by_a_newer_order_and_not_before(book: Book) -> None:
    book.order([order("a")])
    (work,) = book.work()
    book.made(work.record.key, None, "no room")
    book.order([order("a")])
    assert not book.work() and told(book)["a:export:1"] == ("failed", "no room")
    book.order([order("a", version=2)])
    drain(book)
    assert told(book)["a:export:1"] == ("ready", "")


def test_what_cannot_be_removed_holds_what_it_stands_on(book: Book) -> None:
    ordered = [order("c", "circuit"), order("a", "swap", address="10.0.0.3", port=1)]
    book.order(ordered)
    drain(book)
    book.order([away(each) for each in ordered])
    (work,) = book.work()
    book.removed(work.record.key, "no room in memory")
    assert not book.work() and told(book)["a:swap:1"] == ("failed", "no room in memory")
    book.retry()
    assert [key.role for _, key in drain(book)] == ["swap", "circuit"]


def test_a_circuit_learns_what_travels_in_it(book: Book) -> None:
    circuit = order("c", "circuit")
    book.order([circuit])
    drain(book)
    book.order([circuit, order("a"), order("b", "disk", address="10.0.0.1", port=77), order("x", host="other")])
    assert next(key.role for _, key in drain(book)) == "circuit"
    own, far = book.ports(circuit)
    assert own == [book.records[Key("a", "export", 1)].order.port] and far == [77]


def test_what_was_lost_stays_lost_over_a_restart(book: Book) -> None:
    book.order([order("a", kind="memory")])
    drain(book)
    book.lost(Key("a", "export", 1), "killed")
    again = Book(book.records.values(), ROLES, PORTS)
    assert not again.work() and told(again)["a:export:1"] == ("lost", "killed")


def test_what_was_ready_and_cannot_be_made_again_is_lost(book: Book) -> None:
    book.order([order("a", kind="memory")])
    drain(book)
    again = Book(book.records.values(), ROLES, PORTS)
    (work,) = again.work()
    again.made(work.record.key, None, "the memory is gone")
    assert told(again)["a:export:1"] == ("lost", "the memory is gone")


def test_what_is_not_ready_yet_is_asked_for_again_and_may_be_ordered_away_meanwhile(book: Book) -> None:
    book.order([order("a", "disk")])
    (work,) = book.work()
    book.not_yet(work.record.key)
    assert not book.work() and told(book) == {}
    book.retry()
    (work,) = book.work()
    book.not_yet(work.record.key)
    book.order([away(order("a", "disk", version=2))])
    assert [verb for verb, _ in drain(book)] == ["remove"] and told(book) == {"a:disk:1": ("gone", "")}


def test_what_waits_for_another_to_go_is_asked_for_when_that_has(book: Book) -> None:
    old, new = order("old", "disk"), order("new", "disk", mirrors="old")
    book.order([old])
    drain(book)
    book.order([old, new])
    (work,) = book.work()
    book.not_yet(work.record.key)
    book.order([away(old), new])
    assert [(verb, key.part) for verb, key in drain(book)] == [("remove", "old"), ("make", "new")]


def test_which_disk_takes_the_place_of_which(book: Book) -> None:
    old, new = order("old", "disk"), order("new", "disk", mirrors="old")
    book.order([old, order("of-another", "disk", host="other")])
    drain(book)
    assert book.beside(old) == (None, (), None, False)
    book.order([old, new])
    (work,) = book.work()
    assert book.beside(old) == (None, (Key.of(new),), Key.of(new), False)
    assert book.beside(new) == (Key.of(old), (Key.of(old),), None, False)
    book.made(work.record.key, Made())
    book.order([away(old), new])
    assert book.beside(old) == (None, (Key.of(new),), Key.of(new), True)
    assert book.beside(new) == (Key.of(old), (), None, False)
    drain(book)
    assert book.beside(new) == (None, (), None, False)


def test_a_copy_counts_as_none_after_a_restart_as_long_as_the_other_one_stays(book: Book) -> None:
    old, new = order("old", "disk"), order("new", "disk", mirrors="old")
    book.order([old, new])
    drain(book)
    again = Book(book.records.values(), ROLES, PORTS)
    assert not again.beside(old).heir_is_ready and told(again) == {"old:disk:1": ("ready", "")}
    drain(again)
    assert again.beside(old).heir_is_ready
    again.order([away(old), new])
    assert Book(again.records.values(), ROLES, PORTS).beside(old).heir_is_ready


def test_what_is_ordered_away_once_more_says_so_of_the_later_order(book: Book) -> None:
    book.order([order("a")])
    drain(book)
    book.order([away(order("a", version=2))])
    (work,) = book.work()
    book.order([away(order("a", version=3))])
    book.removed(work.record.key)
    (state,) = book.picture()
    assert (state.state, state.version) == ("gone", 3)


# --- any orders, any crash

PARTS = [("a", "circuit"), ("b", "export"), ("c", "export"), ("d", "disk"), ("e", "swap"), ("f", "vm")]
ORDERS = st.lists(
    st.tuples(st.sampled_from(PARTS), st.integers(1, 2), st.sampled_from(["present", "absent"])),
    max_size=6,
    unique_by=lambda each: (each[0], each[1]),
)


class Node:
    """Disk and machine: what a crash leaves. A step may stop before the work, after it, and before it is noted."""

    def __init__(self) -> None:
        self.disk: dict[Key, Record] = {}
        self.machine: set[Key] = set()
        self.book = Book((), ROLES, PORTS)

    def crash(self) -> None:
        self.book = Book(self.disk.values(), ROLES, PORTS)

    def write(self, records: list[Record]) -> None:
        self.disk |= {record.key: record for record in records}

    def step(self, draw: Any) -> bool:
        """Do one thing, or crash in the middle of it. Whether there was anything to do."""
        found = self.book.work()
        if not found:
            return False
        for work in found:
            if work.verb == "make":
                self._judge_order(work.record.key)
        for work in found:
            key, stop = work.record.key, draw(st.sampled_from(["no"] * 6 + ["before", "half", "unnoted"]))
            assert key in self.disk, "work that is not written down"
            if stop == "before":
                self.crash()
                return True
            (self.machine.add if work.verb == "make" else self.machine.discard)(key)
            if stop == "half" and work.verb == "remove":
                self.machine.add(key)
            if stop != "no":
                self.crash()
                return True
            if work.verb == "make":
                self.write([self.book.made(key, Made())])
            else:
                del self.disk[key]
                self.write(self.book.removed(key))
        return True

    def _judge_order(self, key: Key) -> None:
        below = [
            other
            for other, record in self.disk.items()
            if RANKS[other.role] < RANKS[key.role] and not record.leaving and record.state == "new"
        ]
        assert not below, f"{key} before {below}"


@settings(max_examples=300, deadline=None)
@given(rounds=st.lists(ORDERS, min_size=1, max_size=6), draw=st.data())
def test_in_the_end_exactly_what_was_ordered_stands(rounds: list[Any], draw: st.DataObject) -> None:
    node = Node()
    wanted: dict[Key, str] = {}
    orders: list[PartOrder] = []
    for number, asked in enumerate(rounds):
        orders = [
            order(part, role, incarnation=incarnation, want=want, version=number + 1)
            for (part, role), incarnation, want in asked
        ]
        wanted |= {Key.of(each): each.want for each in orders}
        node.write(node.book.order(orders))
        for _ in range(draw.draw(st.integers(0, 3))):
            node.step(draw.draw)
    # The leader repeats what it wants, and at last nothing crashes any more.
    for _ in range(40):
        node.write(node.book.order(orders))
        for work in node.book.work():
            key = work.record.key
            (node.machine.add if work.verb == "make" else node.machine.discard)(key)
            if work.verb == "make":
                node.write([node.book.made(key, Made())])
            else:
                del node.disk[key]
                node.write(node.book.removed(key))
    assert node.machine == set(node.disk), "something stands that no record knows, or the other way round"
    for key in node.machine:
        assert wanted[key] == "present" and node.disk[key].state == "ready"
    for each in orders:
        key, state = Key.of(each), _state_of(node.book.picture(), Key.of(each))
        if each.want == "absent":
            assert key not in node.machine and state == "gone"
        elif key not in node.machine:
            assert state == "failed" and any(other[:2] == key[:2] for other in node.machine)
    assert len({(key.part, key.role) for key in node.machine}) == len(node.machine), "two incarnations at once"


def _state_of(picture: list[PartState], key: Key) -> str:
    (state,) = [each.state for each in picture if (each.part, each.role, each.incarnation) == key]
    return state
