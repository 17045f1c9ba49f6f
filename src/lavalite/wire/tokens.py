"""Assertions and tokens: who says that somebody is somebody, to whom, and for how long. PASETO v4.public.

    node's key ── signs ──► assertion (60 s: "I am n1", or on a submit node "this is user:ann:1000:1000")
                                │ exchanged at the leading LIM
    candidate's key ─ signs ─► token (5 min or less: subject, audience, epoch)
                                │ shown in a Hello, or as an HTTP bearer
                            verify() ─► Claims, or RefusedError

The library checks signatures only; every claim is checked here, in one place. The signer's name is the footer, which
the signature covers. Assertions and tokens are signed for different purposes, so that neither passes for the other.

**The epoch.** A token belongs to the leadership in which it was issued, and is refused in every other one: the two
must be equal. `epoch=None` is a value like others, equal only to itself: such a token is refused wherever there is an
epoch. It exists for the audience "lim" alone, for beats before anybody leads.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from typing import TypeVar

import pyseto
from pydantic import BaseModel, ConfigDict

from lavalite.base.errors import InputError, RefusedError
from lavalite.wire.frames import EpochPair
from lavalite.wire.keys import NodeKey, TrustBundle, TrustEntry

__all__ = [
    "Assertion", "Claims", "NodeKey", "Person", "TrustBundle", "TrustEntry", "issue_token", "sign_assertion",
    "verify", "verify_assertion",
]  # fmt: skip

AUDIENCE_LIM, AUDIENCE_MBATCHD, AUDIENCE_API = "lim", "mbatchd", "api"
MAX_TOKEN_SECONDS = 300
MAX_ASSERTION_SECONDS = 60
SKEW_SECONDS = 10
"""How far ahead of ours the signer's clock may be."""
MAX_CHARACTERS = 4096
_HEADER = "v4.public."
_PERSON = "user:"
_NO_ID = 2**32 - 1
"""As a uid this is -1: "leave as it is", which would keep root."""
_TOKEN_PURPOSE, _ASSERTION_PURPOSE = b"lavalite token 1", b"lavalite assertion 1"


@dataclass(slots=True, frozen=True)
class Claims:
    """What a good token says. `role` is the subject's own role in the bundle, or "user" for a person."""

    subject: str
    audience: str
    epoch: EpochPair | None
    expires_at: float
    issuer: str
    role: str


@dataclass(slots=True, frozen=True)
class Assertion:
    """What a good assertion says. `subject` is the node itself, or the person it vouches for."""

    node: str
    role: str
    subject: str
    audience: str
    issued_at: float


@dataclass(slots=True, frozen=True)
class Person:
    """A person as a subject: `user:NAME:UID:GID`."""

    name: str
    uid: int
    gid: int

    @property
    def subject(self) -> str:
        return f"{_PERSON}{self.name}:{self.uid}:{self.gid}"

    @classmethod
    def parse(cls, subject: str) -> Person | None:
        """None if the subject is no person, or none that is spelled in the one right way."""
        kind, *rest = subject.split(":")
        if f"{kind}:" != _PERSON or len(rest) != 3 or not all(p.isascii() and p.isdecimal() for p in rest[1:]):
            return None
        person = cls(rest[0], int(rest[1]), int(rest[2]))
        named = person.name.isprintable() and person.name.split() == [person.name]
        numbered = person.uid < _NO_ID and person.gid < _NO_ID
        return person if named and numbered and person.subject == subject else None


class _Signed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    sub: str
    aud: str
    issued_at: float
    """Seconds since the Unix epoch."""


class _Token(_Signed):
    epoch: EpochPair | None
    expires_at: float


SignedT = TypeVar("SignedT", bound=_Signed)


def sign_assertion(key: NodeKey, node: str, audience: str, now: float, *, subject: str = "") -> str:
    """`node` says that it is itself, or vouches for `subject` (a person). Good for MAX_ASSERTION_SECONDS."""
    payload = {"sub": subject or node, "aud": audience, "issued_at": now}
    return key.sign(json.dumps(payload).encode(), node.encode(), _ASSERTION_PURPOSE)


def verify_assertion(assertion: str, bundle: TrustBundle, *, audience: str, now: float) -> Assertion:
    """Raises RefusedError unless its node is trusted, signed it for `audience`, and did so just now.

    Any node speaks for itself; candidates and submit nodes vouch for people; a worker vouches for nobody.
    """
    said, node = _open(assertion, bundle, _ASSERTION_PURPOSE, _Signed)
    _check_audience(said.aud, audience)
    _check_begun(said.issued_at, now)
    if now - said.issued_at > MAX_ASSERTION_SECONDS:
        age = f"{now - said.issued_at:.0f} s"
        raise RefusedError(f"This assertion is {age} old", code="assertion_expired", hint=_CLOCKS)
    role = _role(node, bundle)
    if said.sub != node:
        if role == "worker":
            raise RefusedError(f"Worker {node} vouches for nobody but itself", code="not_a_voucher")
        if Person.parse(said.sub) is None:
            raise RefusedError(f"Node {node} can vouch for people only", code="not_a_voucher")
    return Assertion(node, role, said.sub, said.aud, said.issued_at)


def issue_token(
    key: NodeKey,
    issuer: str,
    subject: str,
    audience: str,
    epoch: EpochPair | None,
    now: float,
    lifetime_seconds: float = MAX_TOKEN_SECONDS,
) -> tuple[str, float]:
    """(token, expires_at in seconds since the Unix epoch). Only a candidate's signature will be taken by verify().

    Raises InputError for a lifetime that is not above 0 and at most MAX_TOKEN_SECONDS, and for a token without an
    epoch to any audience but "lim".
    """
    if not 0 < lifetime_seconds <= MAX_TOKEN_SECONDS:
        raise InputError(f"a token lives for at most {MAX_TOKEN_SECONDS} s, not {lifetime_seconds:g}")
    if epoch is None and audience != AUDIENCE_LIM:
        raise InputError(f"a token for {audience!r} needs an epoch", code="no_epoch", hint="Ask the leading LIM.")
    # Rounded down to the millisecond, so that the difference never exceeds what was asked by a rounding error.
    issued_at, expires_at = now, math.floor((now + lifetime_seconds) * 1000) / 1000
    payload = {"sub": subject, "aud": audience, "epoch": epoch, "issued_at": issued_at, "expires_at": expires_at}
    return key.sign(json.dumps(payload).encode(), issuer.encode(), _TOKEN_PURPOSE), expires_at


def verify(
    token: str, bundle: TrustBundle, *, subject: str | None, audience: str, epoch: EpochPair | None, now: float
) -> Claims:
    """The one check of tokens. Raises RefusedError unless all of it holds.

    `subject`: who it must speak of; None takes anybody, and leaves it to the caller to look at `Claims.subject`.
    `epoch`: the leadership we are in. `now`: seconds since the Unix epoch. A node that is no longer in the bundle is
    refused at once, as issuer and as subject.
    """
    said, issuer = _open(token, bundle, _TOKEN_PURPOSE, _Token)
    if _role(issuer, bundle) != "candidate":
        raise RefusedError(f"Node {issuer} may not issue tokens", code="not_an_issuer", hint="Only candidates may.")
    _check_audience(said.aud, audience)
    _check_begun(said.issued_at, now)
    if now >= said.expires_at:
        raise RefusedError("This token has expired", code="token_expired", hint="Ask for a new one.")
    if not 0 < said.expires_at - said.issued_at <= MAX_TOKEN_SECONDS:
        raise RefusedError(f"This token lives longer than {MAX_TOKEN_SECONDS} s", code="token_too_long")
    if said.epoch != epoch or (epoch is None and audience != AUDIENCE_LIM):
        hint = "Ask the leading LIM for a new one."
        raise RefusedError("This token is of another leadership", code="wrong_epoch", hint=hint)
    if subject is not None and said.sub != subject:
        raise RefusedError(
            "This token speaks of somebody else", code="wrong_subject", hint="Ask for one of your own."
        )
    role = "user" if Person.parse(said.sub) else _role(said.sub, bundle)
    return Claims(said.sub, said.aud, said.epoch, said.expires_at, issuer, role)


_CLOCKS = "Check that the clocks of both nodes are set (chronyc tracking)."


def _check_audience(said: str, expected: str) -> None:
    if said != expected:
        raise RefusedError(f"This was made for {said[:60]!r}, not for {expected!r}", code="wrong_audience")


def _check_begun(issued_at: float, now: float) -> None:
    if issued_at > now + SKEW_SECONDS:
        raise RefusedError(f"This was signed {issued_at - now:.0f} s in the future", code="clock_skew", hint=_CLOCKS)


def _role(node: str, bundle: TrustBundle) -> str:
    role = bundle.role(node)
    if role is None:
        raise RefusedError(f"Node {node[:60]!r} is not trusted here", code="unknown_node")
    return role


def _open(text: str, bundle: TrustBundle, purpose: bytes, model: type[SignedT]) -> tuple[SignedT, str]:
    """(what was signed, by which node). Nothing of it is believed, or repeated, before the signature holds."""
    bad = RefusedError("This token is not valid", code="bad_token", hint="Ask for a new one.")
    signer = _claimed_signer(text)
    if not signer:
        raise bad
    keys = bundle.keys(signer)
    try:
        # The library's own reading of claims goes by a clock of its own: only the signature is its business here.
        payload = pyseto.decode(keys, text, implicit_assertion=purpose).payload
        if isinstance(payload, bytes):
            return model.model_validate_json(payload), signer
    except (ValueError, TypeError, pyseto.PysetoError):  # pydantic's ValidationError is a ValueError
        pass
    raise bad


def _claimed_signer(text: str) -> str:
    """The node that says it signed this; empty if the text is not spelled in the one right way.

    Base64 has several spellings of the same bytes; only the one that we write is taken.
    """
    parts = text.removeprefix(_HEADER).split(".")
    if len(text) > MAX_CHARACTERS or not text.startswith(_HEADER) or len(parts) != 2 or not text.isascii():
        return ""
    try:
        raw = [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts]
        spelled = [base64.urlsafe_b64encode(r).decode().rstrip("=") for r in raw]
        return raw[1].decode("ascii") if spelled == parts else ""
    except ValueError:
        return ""
