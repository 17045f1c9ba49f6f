"""The book's law: whatever is assumed, confirmed, unwound, released or taken away, it adds up after every step."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lavalite.ledger.book import FLOATING, Book, LedgerBroken, Shortage
from lavalite.model.job import CommitmentRecord, Share

DEVICES = ["g0", "g1", "g2"]
BOARDS = ["/dev/f0", "/dev/f1", "/dev/f2"]
"""Of a special kind: counted, and whole."""


def commitment(owner: str, *shares: Share) -> CommitmentRecord:
    return CommitmentRecord(owner=owner, epoch=(0, 1), shares=list(shares), committed_at=0.0)


def share(provider: str, kind: str, amount: int, *devices: str) -> Share:
    return Share(provider=provider, kind=kind, amount=amount, devices=list(devices))


def test_a_commitment_is_all_or_nothing() -> None:
    book = Book()
    book.set_capacity("n1", "cpu", 4000)
    book.set_capacity(FLOATING, "matlab", 1)
    both = (share("n1", "cpu", 3000), share(FLOATING, "matlab", 1))
    assert book.assume(commitment("a", *both)) is None
    assert book.assume(commitment("b", share("n1", "cpu", 1000), share(FLOATING, "matlab", 1))) == Shortage(
        FLOATING, "matlab", asked=1, free=0
    )
    assert book.free("n1", "cpu") == 1000
    book.unwind("a")
    assert book.free("n1", "cpu") == 4000 and list(book.owners()) == []
    book.check()


def test_two_shares_of_one_account_are_added_up() -> None:
    book = Book()
    book.set_capacity("n1", "cpu", 3000)
    short = book.assume(commitment("a", share("n1", "cpu", 2000), share("n1", "cpu", 2000)))
    assert short is not None and short.sentence() == "cpu of n1: 4000 asked, 3000 free."


def test_a_device_is_held_once_whole_or_by_parts() -> None:
    book = Book()
    book.set_capacity("n1", "gpu", 2000, ["g0", "g1"])
    assert book.assume(commitment("a", share("n1", "gpu", 1000, "g0"))) is None
    assert book.assume(commitment("b", share("n1", "gpu", 500, "g1"))) is None
    assert book.assume(commitment("c", share("n1", "gpu", 500, "g0"))) == Shortage("n1", "gpu", 500, 0, "g0")
    assert book.assume(commitment("d", share("n1", "gpu", 500, "g9"))) == Shortage("n1", "gpu", 500, 0, "g9")
    assert book.assume(commitment("e", share("n1", "gpu", 500, "g1"))) is None
    assert book.device_free("n1", "gpu") == {"g0": 0, "g1": 0}
    book.check()


def test_a_device_of_a_special_kind_is_one_and_whole() -> None:
    book = Book()
    book.set_capacity("n1", "fpga", 2, BOARDS[:2])
    assert book.assume(commitment("a", share("n1", "fpga", 1, "/dev/f0"))) is None
    assert book.assume(commitment("b", share("n1", "fpga", 1, "/dev/f0"))) == Shortage(
        "n1", "fpga", 1000, 0, "/dev/f0"
    )
    assert book.assume(commitment("c", share("n1", "fpga", 2, *BOARDS[:2]))) == Shortage("n1", "fpga", 2, 1)
    assert book.device_free("n1", "fpga") == {"/dev/f0": 0, "/dev/f1": 1000} and book.free("n1", "fpga") == 1
    book.check()


def test_a_node_that_comes_back_smaller_is_seen_and_breaks_nothing() -> None:
    book = Book()
    book.set_capacity("n1", "cpu", 4000)
    assert book.assume(commitment("a", share("n1", "cpu", 3000))) is None
    book.confirm("a")
    book.set_capacity("n1", "cpu", 1000)
    assert book.overcommitted() == [("n1", "cpu")] and book.free("n1", "cpu") == 0
    book.check()
    book.remove_provider("n1")
    book.release("a")
    assert list(book.accounts()) == []


def test_misuse_is_loud() -> None:
    book = Book()
    book.set_capacity("n1", "cpu", 4000)
    assert book.assume(commitment("a", share("n1", "cpu", 1))) is None
    for wrong in (
        lambda: book.assume(commitment("a", share("n1", "cpu", 1))),
        lambda: book.release("a"),
        lambda: book.confirm("b"),
        lambda: book.unwind("b"),
        lambda: book.set_capacity("n1", "cpu", -1),
    ):
        with pytest.raises(LedgerBroken):
            wrong()
    book.confirm("a")
    with pytest.raises(LedgerBroken):
        book.unwind("a")
    with pytest.raises(LedgerBroken, match="held twice"):
        book.restore(commitment("x", share("n1", "gpu", 1000, "g0")))
        book.restore(commitment("y", share("n1", "gpu", 1000, "g0")))


def test_the_full_check_finds_what_was_broken_behind_its_back() -> None:
    book = Book()
    book.set_capacity("n1", "cpu", 4000)
    assert book.assume(commitment("a", share("n1", "cpu", 1000))) is None
    account = next(account for _, _, account in book.accounts())
    account.committed += 1
    with pytest.raises(LedgerBroken):
        book.check()


SHARES = st.lists(
    st.one_of(
        st.builds(share, st.sampled_from(["n1", "n2", FLOATING]), st.just("cpu"), st.integers(0, 1500)),
        st.builds(
            lambda ids: share("n1", "gpu", 1000 * len(ids), *ids), st.sets(st.sampled_from(DEVICES), min_size=1)
        ),
        st.builds(lambda d, part: share("n1", "gpu", part, d), st.sampled_from(DEVICES), st.integers(1, 999)),
        st.builds(lambda ids: share("n1", "fpga", len(ids), *ids), st.sets(st.sampled_from(BOARDS), min_size=1)),
    ),
    max_size=4,
)


class Bookkeeping(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.book = Book()
        self.assumed: list[str] = []
        self.confirmed: list[str] = []
        self.count = 0

    @rule(provider=st.sampled_from(["n1", "n2", FLOATING]), amount=st.integers(0, 4000))
    def capacity(self, provider: str, amount: int) -> None:
        self.book.set_capacity(provider, "cpu", amount)

    @rule(devices=st.sets(st.sampled_from(DEVICES)))
    def devices(self, devices: set[str]) -> None:
        self.book.set_capacity("n1", "gpu", 1000 * len(devices), sorted(devices))

    @rule(devices=st.sets(st.sampled_from(BOARDS)))
    def boards(self, devices: set[str]) -> None:
        self.book.set_capacity("n1", "fpga", len(devices), sorted(devices))

    @rule(shares=SHARES)
    def assume(self, shares: list[Share]) -> None:
        self.count += 1
        free = {(p, k): self.book.free(p, k) for p, k, _ in self.book.accounts()}
        short = self.book.assume(commitment(f"o{self.count}", *shares))
        if short is None:
            self.assumed.append(f"o{self.count}")
        else:
            assert short.asked > short.free
            assert free == {(p, k): self.book.free(p, k) for p, k, _ in self.book.accounts()}

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        if self.assumed:
            owner = self.assumed.pop(data.draw(st.integers(0, len(self.assumed) - 1)))
            if data.draw(st.booleans()):
                self.book.confirm(owner)
                self.confirmed.append(owner)
            else:
                self.book.unwind(owner)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.confirmed:
            self.book.release(self.confirmed.pop(data.draw(st.integers(0, len(self.confirmed) - 1))))

    @invariant()
    def adds_up(self) -> None:
        self.book.check()
        for provider, kind, account in self.book.accounts():
            assert account.committed + account.free == account.capacity
            assert self.book.free(provider, kind) == max(0, account.free)
        assert set(self.book.owners()) == {*self.assumed, *self.confirmed}
        held = [
            d for owner in self.book.owners() for s in self.book.shares(owner) if s.kind == "fpga" for d in s.devices
        ]
        assert len(held) == len(set(held))

    def teardown(self) -> None:
        for owner in self.assumed:
            self.book.unwind(owner)
        for owner in self.confirmed:
            self.book.release(owner)
        assert all(account.committed == 0 for _, _, account in self.book.accounts())


TestBookkeeping = Bookkeeping.TestCase
TestBookkeeping.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
