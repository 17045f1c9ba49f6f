"""Who this node is, and whom it vouches for: its key, the bundle, and the tokens that come of them."""

from __future__ import annotations

import json
import pwd
from pathlib import Path

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import InputError, RefusedError
from lavalite.lim.config import LimConfig
from lavalite.wire.frames import EpochPair, Granted
from lavalite.wire.tokens import (
    AUDIENCE_API,
    MAX_TOKEN_SECONDS,
    Claims,
    NodeKey,
    Person,
    TrustBundle,
    issue_token,
    sign_assertion,
    verify,
    verify_assertion,
)

log = structlog.get_logger(__name__)


OWN_BUNDLE = "trust.json"
"""Stands beside LIM's socket where no bundle was laid down."""


class Identity:
    """This node's key and the bundle that it trusts. `now` is wall time throughout, in seconds."""

    def __init__(self, node: str, key: NodeKey, bundle: TrustBundle, clock: Clock) -> None:
        self._node, self._key, self._bundle, self._clock = node, key, bundle, clock

    @classmethod
    def load(cls, config: LimConfig, clock: Clock) -> Identity:
        """Without a bundle the node trusts its own key alone, and says so beside its socket. Raises InputError."""
        key = NodeKey.load_or_create(config.node_key_path)
        if config.trust_bundle_path is None:
            _write_own_bundle(config.local_socket_path.with_name(OWN_BUNDLE), config.node, key.public)
            return cls(config.node, key, TrustBundle.alone(config.node, key.public), clock)
        bundle = TrustBundle.load(config.trust_bundle_path)
        if config.candidate and bundle.role(config.node) != "candidate":
            raise InputError(
                f"{config.trust_bundle_path} does not say that {config.node} is a candidate",
                field="candidate",
                hint="Give the node the role candidate there, or set candidate: false.",
            )
        if bundle.role(config.node) is None:
            log.warning("this node is not in the trust bundle: nobody will believe it", public=key.public)
        return cls(config.node, key, bundle, clock)

    def other_candidates(self) -> set[str]:
        """Nodes that may lead too."""
        return {node for node in self._bundle.nodes() if self._bundle.role(node) == "candidate"} - {self._node}

    def assertion(self, audience: str, subject: str = "") -> str:
        """This node's word for itself, or for a person. Good for a minute."""
        return sign_assertion(self._key, self._node, audience, self._clock.now(), subject=subject)

    def exchange(self, assertion: str, audience: str, epoch: EpochPair) -> Granted:
        """On the leading LIM: a token for who is asserted. Raises RefusedError."""
        said = verify_assertion(assertion, self._bundle, audience=audience, now=self._clock.now())
        if (said.subject != said.node) != (audience == AUDIENCE_API):
            raise RefusedError(f"{said.subject} gets no token for {audience!r}", code="wrong_audience")
        token, expires_at = issue_token(
            self._key, self._node, said.subject, audience, epoch, self._clock.now(), MAX_TOKEN_SECONDS
        )
        return Granted(token=token, expires_at=expires_at)

    def claims(self, token: str, audience: str, epoch: EpochPair) -> Claims:
        """What a token of this leadership says. Raises RefusedError."""
        return verify(token, self._bundle, subject=None, audience=audience, epoch=epoch, now=self._clock.now())

    def person(self, uid: int, gid: int) -> str:
        """The subject of a local user. Raises RefusedError where this node may not vouch for people."""
        if self._bundle.role(self._node) not in ("candidate", "submit"):
            raise RefusedError(
                f"Node {self._node} vouches for nobody but itself",
                code="not_a_voucher",
                hint="Submit from a submit node or a candidate.",
            )
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = str(uid)
        return Person(name, uid, gid).subject


def make_state_folder(path: Path) -> None:
    """Raises InputError. Others may pass through, as people ask the socket in it; each secret guards itself."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        hint = "Make it, writable for this user, or set another state_path."
        raise InputError(f"cannot make {path}: {error.strerror}", field="state_path", hint=hint) from None


def _write_own_bundle(path: Path, node: str, public: str) -> None:
    """For mbatchd, which looks for it there. Raises InputError."""
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.write_text(json.dumps({node: {"public": public, "role": "candidate"}}) + "\n")
        draft.chmod(0o644)
        draft.replace(path)
    except OSError as error:
        hint = "Make its folder writable for this user, or set trust_bundle_path."
        raise InputError(f"cannot write {path}: {error.strerror}", field="socket_path", hint=hint) from None
