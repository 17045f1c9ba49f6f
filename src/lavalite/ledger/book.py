"""The book: how much of what every provider has, how much of it is committed, and who holds it. Pure arithmetic.

An account stands for one kind of one provider. Providers are nodes, logical hosts and `floating`. A composed host
is both: it debits the accounts of its nodes, and offers what it took as capacity of its own; what runs on the host
debits the host alone.

    assume ──► confirm ──► release          a commitment: placed in memory, durable, given back
       └─────► unwind                       or not made durable

The law, checked on each account that a change touches: committed + free = capacity, and nobody holds a device twice.
A node may come back with fewer parts than are committed on it. Then `free` is negative, the account stands in
`overcommitted()`, placement sees nothing free there, and nothing breaks.

Beside its accounts each provider has places (model.resources): whoever holds anything of it has one, from when that
is taken until all is given back, and who has it for itself all of them. So nobody is assumed beside such a one. Where
a restore brings one beside others all the same, they stand in `crowded()` until but one is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from lavalite.model.job import CommitmentRecord, Share
from lavalite.model.resources import ALL_PLACES, PLACES, WHOLE, load_of

FLOATING = "floating"
"""The provider of everything that belongs to no node."""

AccountKey = tuple[str, str]
"""(provider, kind)"""


class LedgerBroken(AssertionError):
    """The books do not add up: a bug. Nothing may be committed on top of it."""


@dataclass(slots=True, frozen=True)
class Shortage:
    """Why a commitment was not assumed: the first account that has too little, in the kind's unit."""

    provider: str
    kind: str
    asked: int
    free: int
    device: str = ""

    def sentence(self) -> str:
        if self.kind == PLACES:
            return f"{self.provider}: somebody has it for itself, or it is not empty."
        thing = f"device {self.device} of {self.provider}" if self.device else f"{self.kind} of {self.provider}"
        return f"{thing}: {self.asked} asked, {max(0, self.free)} free."


@dataclass(slots=True)
class Account:
    """Amounts are in the kind's unit. `loads` is what of each device is committed, at most WHOLE."""

    capacity: int = 0
    committed: int = 0
    devices: tuple[str, ...] = ()
    loads: dict[str, int] = field(default_factory=dict)
    holders: dict[str, int] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.capacity - self.committed


@dataclass(slots=True)
class _Held:
    """What an owner holds. On each of the providers it has so many places."""

    shares: tuple[Share, ...]
    confirmed: bool
    providers: tuple[str, ...]
    places: int


class Book:
    """See the module's docstring. All amounts are integers in the kind's unit."""

    def __init__(self) -> None:
        self._accounts: dict[str, dict[str, Account]] = {}
        self._held: dict[str, _Held] = {}
        self._places: dict[str, Account] = {}
        """Of each provider of which anything is held."""
        self._touched: set[str] = set()
        self.changes = 0
        """Grows with each change of any account."""

    # --- capacity -------------------------------------------------------------------------------------------

    def set_capacity(self, provider: str, kind: str, amount: int, devices: Sequence[str] = ()) -> None:
        """What the provider has now, all told. May be less than what is committed."""
        if amount < 0 or len(set(devices)) != len(devices) or (devices and not amount):
            raise LedgerBroken(f"{provider}/{kind}: capacity {amount} with devices {list(devices)}")
        account = self._opened(provider, kind)
        account.capacity, account.devices = amount, tuple(devices)
        self._touched.add(provider)
        self.changes += 1
        self._forget_if_empty(provider, kind)

    def remove_provider(self, provider: str) -> None:
        """The provider offers nothing any more. What is committed on it stays visible as over-committed."""
        for kind in self.kinds(provider):
            self.set_capacity(provider, kind, 0)

    # --- commitments ----------------------------------------------------------------------------------------

    def assume(self, commitment: CommitmentRecord) -> Shortage | None:
        """Take all its shares, or none and say what is short."""
        providers = _providers(commitment)
        short = self.shortage(commitment.shares) or self._no_place(commitment, providers)
        if short is None:
            self._enter(commitment, providers, confirmed=False)
        return short

    def restore(self, commitment: CommitmentRecord) -> None:
        """Take the shares of a commitment that is durable already, whether they still fit or not."""
        self._enter(commitment, _providers(commitment), confirmed=True)

    def confirm(self, owner: str) -> None:
        """The assumed commitment is durable now."""
        self._of(owner).confirmed = True

    def unwind(self, owner: str) -> None:
        """The assumed commitment did not become durable: give its shares back."""
        if self._of(owner).confirmed:
            raise LedgerBroken(f"{owner}: unwound after it was confirmed")
        self._give_back(owner)

    def release(self, owner: str) -> None:
        """The holder has ended: give its shares back."""
        if not self._of(owner).confirmed:
            raise LedgerBroken(f"{owner}: released before it was confirmed")
        self._give_back(owner)

    def exchange(self, owner: str, shares: Sequence[Share]) -> None:
        """The holder of a durable commitment holds these from now on; there is enough of what is more than before.

        It keeps its places, where it holds nothing by now as well: it is not gone.
        """
        held = self._of(owner)
        if not held.confirmed:
            raise LedgerBroken(f"{owner}: changed before it was confirmed")
        self._move_all(owner, held.shares, -1)
        held.shares = tuple(shares)
        self._move_all(owner, held.shares, +1)

    # --- looking ----------------------------------------------------------------------------------------------

    def free(self, provider: str, kind: str) -> int:
        """What may be given out: never less than 0, also where more is committed than there is."""
        account = self._account(provider, kind)
        return max(0, account.free) if account else 0

    def capacity(self, provider: str, kind: str) -> int:
        account = self._account(provider, kind)
        return account.capacity if account else 0

    def amounts(self, provider: str) -> tuple[dict[str, int], dict[str, int]]:
        """What the provider has of each kind, and what of that may be given out."""
        accounts = self._accounts.get(provider, {})
        free = {kind: max(0, account.capacity - account.committed) for kind, account in accounts.items()}
        return {kind: account.capacity for kind, account in accounts.items()}, free

    def committed(self, provider: str, kind: str) -> int:
        account = self._account(provider, kind)
        return account.committed if account else 0

    def device_free(self, provider: str, kind: str) -> dict[str, int]:
        """What is free of each device that is offered, out of WHOLE."""
        account = self._account(provider, kind)
        return {d: WHOLE - account.loads.get(d, 0) for d in account.devices} if account else {}

    def holders(self, provider: str, kind: str) -> dict[str, int]:
        """Who holds how much of it; of PLACES everybody who holds anything of the provider."""
        account = self._places.get(provider) if kind == PLACES else self._account(provider, kind)
        return dict(account.holders) if account else {}

    def free_places(self, provider: str) -> int:
        """How many may be given out: all of them where nobody holds anything of the provider."""
        account = self._places.get(provider)
        return max(0, account.free) if account else ALL_PLACES

    def places(self, owner: str, provider: str) -> int:
        """How many places the owner has there."""
        held = self._held.get(owner)
        return held.places if held is not None and provider in held.providers else 0

    def crowded(self) -> list[str]:
        """Providers that somebody has for itself, and others hold something of."""
        return [provider for provider, account in self._places.items() if account.free < 0]

    def shares(self, owner: str) -> tuple[Share, ...]:
        """What the owner holds; nothing if it holds nothing."""
        held = self._held.get(owner)
        return held.shares if held else ()

    def holds(self, owner: str) -> bool:
        return owner in self._held

    def owners(self) -> Iterator[str]:
        return iter(self._held)

    def kinds(self, provider: str) -> list[str]:
        return list(self._accounts.get(provider, ()))

    def accounts(self) -> Iterator[tuple[str, str, Account]]:
        """Every account, for views and tests. Do not change them."""
        return ((p, kind, account) for p, kinds in self._accounts.items() for kind, account in kinds.items())

    def overcommitted(self) -> list[AccountKey]:
        """Accounts with more committed than there is: parts vanished under their holders."""
        return [(provider, kind) for provider, kind, account in self.accounts() if account.free < 0]

    def take_touched(self) -> set[str]:
        """Providers of which anything changed since this was asked last."""
        touched, self._touched = self._touched, set()
        return touched

    def shortage(self, shares: Iterable[Share]) -> Shortage | None:
        """What keeps these shares, all together, from being taken now."""
        asked: dict[AccountKey, int] = {}
        loads: dict[tuple[str, str, str], int] = {}
        for share in shares:
            key = (share.provider, share.kind)
            asked[key] = asked.get(key, 0) + share.amount
            for device, load in _loads(share):
                loads[(*key, device)] = loads.get((*key, device), 0) + load
        for (provider, kind), amount in asked.items():
            if amount > self.free(provider, kind):
                return Shortage(provider, kind, amount, self.free(provider, kind))
        for (provider, kind, device), load in loads.items():
            account = self._account(provider, kind) or Account()
            free = WHOLE - account.loads.get(device, 0) if device in account.devices else 0
            if load > free:
                return Shortage(provider, kind, load, free, device)
        return None

    # --- the law ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Add everything up anew. Raises LedgerBroken."""
        sums: dict[AccountKey, dict[str, int]] = {}
        loads: dict[tuple[str, str, str], int] = {}
        for owner, held in self._held.items():
            for share in held.shares:
                if not share.amount:
                    continue
                key = (share.provider, share.kind)
                by_owner = sums.setdefault(key, {})
                by_owner[owner] = by_owner.get(owner, 0) + share.amount
                for device, load in _loads(share):
                    loads[(*key, device)] = loads.get((*key, device), 0) + load
        places: dict[str, dict[str, int]] = {}
        for owner, held in self._held.items():
            for provider in held.providers:
                places.setdefault(provider, {})[owner] = held.places
        for provider, account in self._places.items():
            _check_account((provider, PLACES), account)
        if places != {provider: account.holders for provider, account in self._places.items()}:
            raise LedgerBroken("places are not taken by those, and only those, who hold something")
        for key in sums:
            if self._account(*key) is None:
                raise LedgerBroken(f"{key[0]}/{key[1]} is held by {sorted(sums[key])} and has no account")
        for provider, kind, account in self.accounts():
            key = (provider, kind)
            _check_account(key, account)
            if account.holders != sums.get(key, {}):
                raise LedgerBroken(f"{key[0]}/{key[1]}: holders {account.holders}, by owners {sums.get(key, {})}")
            for device, load in account.loads.items():
                if loads.get((*key, device), 0) != load:
                    raise LedgerBroken(f"{key[0]}/{key[1]}: device {device} is loaded with {load}")

    def _enter(self, commitment: CommitmentRecord, providers: tuple[str, ...], *, confirmed: bool) -> None:
        owner = commitment.owner
        if owner in self._held:
            raise LedgerBroken(f"{owner} holds a commitment already")
        places = ALL_PLACES if commitment.exclusive else 1
        held = _Held(tuple(commitment.shares), confirmed, providers, places)
        self._held[owner] = held
        for provider in providers:
            account = self._places.get(provider)
            if account is None:
                account = self._places[provider] = Account(ALL_PLACES)
            account.committed += places
            account.holders[owner] = places
            self._touched.add(provider)
        self._move_all(owner, held.shares, +1)

    def _give_back(self, owner: str) -> None:
        held = self._held.pop(owner)
        for provider in held.providers:
            account = self._places[provider]
            account.committed -= held.places
            del account.holders[owner]
            if not account.holders:
                del self._places[provider]
            self._touched.add(provider)
        self._move_all(owner, held.shares, -1)

    def _move_all(self, owner: str, shares: Sequence[Share], sign: int) -> None:
        for share in shares:
            self._move(self._opened(share.provider, share.kind), owner, share, sign)
        self._settle(shares)

    def _no_place(self, commitment: CommitmentRecord, providers: tuple[str, ...]) -> Shortage | None:
        """Where somebody has a provider for itself, or is to, and another one holds something of it."""
        asked = ALL_PLACES if commitment.exclusive else 1
        for provider in providers:
            if provider in self._places and (free := self.free_places(provider)) < asked:
                return Shortage(provider, PLACES, asked, free)
        return None

    @staticmethod
    def _move(account: Account, owner: str, share: Share, sign: int) -> None:
        account.committed += sign * share.amount
        left = account.holders.get(owner, 0) + sign * share.amount
        _keep(account.holders, owner, left)
        for device, load in _loads(share):
            _keep(account.loads, device, account.loads.get(device, 0) + sign * load)

    def _settle(self, shares: Sequence[Share]) -> None:
        self.changes += 1
        for share in shares:
            account = self._account(share.provider, share.kind)
            if account is not None:
                if account.committed < 0 or any(account.loads.get(d, 0) > WHOLE for d in share.devices):
                    _check_account((share.provider, share.kind), account)
                self._touched.add(share.provider)
                self._forget_if_empty(share.provider, share.kind)

    def _forget_if_empty(self, provider: str, kind: str) -> None:
        kinds = self._accounts[provider]
        if not kinds[kind].capacity and not kinds[kind].holders:
            del kinds[kind]
            if not kinds:
                del self._accounts[provider]

    def _account(self, provider: str, kind: str) -> Account | None:
        kinds = self._accounts.get(provider)
        return kinds.get(kind) if kinds else None

    def _opened(self, provider: str, kind: str) -> Account:
        return self._accounts.setdefault(provider, {}).setdefault(kind, Account())

    def _of(self, owner: str) -> _Held:
        held = self._held.get(owner)
        if held is None:
            raise LedgerBroken(f"{owner} holds no commitment")
        return held


def _providers(commitment: CommitmentRecord) -> tuple[str, ...]:
    """Of which it holds anything, or did until it was suspended: nobody has what belongs to no node for itself."""
    names = {share.provider for share in commitment.shares}
    if commitment.parked:
        names.update(share.provider for share in commitment.parked)
    names.discard(FLOATING)
    return tuple(sorted(names))


def _loads(share: Share) -> Iterator[tuple[str, int]]:
    """How much of each device the share takes: whole ones, or a part of a single one."""
    if share.devices:
        each = load_of(share.kind, share.amount, len(share.devices))
        yield from ((device, each) for device in share.devices)


def _keep(amounts: dict[str, int], name: str, amount: int) -> None:
    if amount:
        amounts[name] = amount
    else:
        amounts.pop(name, None)


def _check_account(key: AccountKey, account: Account) -> None:
    if account.committed != sum(account.holders.values()) or account.committed < 0 or account.capacity < 0:
        raise LedgerBroken(f"{key[0]}/{key[1]}: committed {account.committed}, holders {account.holders}")
    if account.committed + account.free != account.capacity:
        raise LedgerBroken(f"{key[0]}/{key[1]}: {account.committed} + {account.free} ≠ {account.capacity}")
    for device, load in account.loads.items():
        if not 0 < load <= WHOLE:
            raise LedgerBroken(f"{key[0]}/{key[1]}: device {device} is held twice ({load} of {WHOLE})")
