"""Keys of nodes: the private one of this node, and the bundle of public ones that all nodes trust.

Both follow their files: a changed file counts from the next use on, without a restart. A new file that cannot be
read is logged, and what was read last goes on counting.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any, Literal

import pyseto
import structlog
from pydantic import Field, RootModel, field_validator
from pyseto import Key

from lavalite.base.config import Config, parse_config, read_text
from lavalite.base.errors import InputError, LavaLiteError, RefusedError

Role = Literal["candidate", "worker", "submit"]
PRIVATE_MODE = 0o600
_PUBLIC_HEADER = "k4.public."
_SECRET_HEADER = "k4.secret."  # noqa: S105  the header of the format, not a secret
_SEED_BYTES = 32
_NODE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")

log = structlog.get_logger(__name__)

Stamp = tuple[int, int, int] | None
"""(mtime in ns, inode, size) of a file: differs when it was written or replaced. None: there is none."""


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


class NodeKey:
    """This node's Ed25519 key. It signs, and never shows its private half: not in repr, errors or pickles."""

    __slots__ = ("_key", "_path", "_stamp", "public")

    public: str
    """PASERK text (`k4.public.…`), fit for the bundle."""

    def __init__(self, paserk: str, path: Path | None = None) -> None:
        self._path, self._stamp = path, _stamp(path) if path else None
        self._key, self.public = _private_key(paserk, path)

    def __repr__(self) -> str:
        return f"NodeKey({self.public})"

    def __reduce__(self) -> Any:
        raise TypeError("a private key is not to be copied")

    @classmethod
    def generate(cls) -> NodeKey:
        """A new key that is in no file."""
        return cls(_new_paserk())

    @classmethod
    def load_or_create(cls, path: str | Path) -> NodeKey:
        """The key in `path`; if there is no such file, a new key is written there (0600, whole or not at all).

        Raises InputError if it cannot be read or written, is no key, or others may read it.
        """
        file = Path(path)
        try:
            if not file.exists():
                _write_once(file, _new_paserk() + "\n")
            return cls._load(file)
        except OSError as error:
            reason = error.strerror or str(error)
            hint = "Its directory must exist and be writable for this user."
            raise InputError(f"cannot make the key {file}: {reason}", code="bad_key", hint=hint) from None

    @classmethod
    def _load(cls, file: Path) -> NodeKey:
        if file.stat().st_mode & 0o077:
            hint = f"Run chmod 600 {file}, and make a new key if somebody may have seen it."
            raise InputError(f"{file} may be read by others", code="key_exposed", hint=hint)
        return cls(read_text(file).strip(), file)

    def sign(self, payload: bytes, footer: bytes, purpose: bytes) -> str:
        """A v4.public token. `purpose` is signed too, without travelling: who verifies has to expect it."""
        self._refresh()
        token = pyseto.encode(self._key, payload, footer=footer, implicit_assertion=purpose)
        return bytes(token).decode("ascii")

    def _refresh(self) -> None:
        if self._path is None or (stamp := _stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            fresh = self._load(self._path)
        except (LavaLiteError, OSError) as error:
            log.error("the changed key is not used", path=str(self._path), reason=str(error))
            return
        self._key, self.public = fresh._key, fresh.public
        log.info("key reloaded", path=str(self._path), public=self.public)


class TrustEntry(Config):
    """A node's public keys (more than one while a key is being changed) and its role."""

    public: list[str] = Field(min_length=1, max_length=8)
    role: Role

    @field_validator("public", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("public")
    @classmethod
    def _are_keys(cls, value: list[str]) -> list[str]:
        for public in value:
            if _raw(public, _PUBLIC_HEADER, _SEED_BYTES) is None:
                raise ValueError(f"it should be a public key, {_PUBLIC_HEADER} and 43 characters")
        return value


class TrustTable(RootModel[dict[str, TrustEntry]]):
    """The file of a bundle: a mapping from node to entry."""

    @field_validator("root")
    @classmethod
    def _are_nodes(cls, value: dict[str, TrustEntry]) -> dict[str, TrustEntry]:
        for node in value:
            # No colon above all: "user:…" is how the subjects of people begin.
            if not _NODE.fullmatch(node):
                raise ValueError(f"{node[:60]!r} cannot be a node's name: letters, digits and . _ - only")
        return value


class TrustBundle:
    """Whose signatures count, and for what. Read from YAML or JSON: `{NODE: {public: k4.public.…, role: worker}}`."""

    def __init__(self, entries: dict[str, TrustEntry], path: Path | None = None) -> None:
        self._entries, self._path = entries, path
        self._stamp = _stamp(path) if path else None
        self._keys: dict[str, list[Any]] = {}

    @classmethod
    def load(cls, path: str | Path) -> TrustBundle:
        """Raises InputError with all faults in the file, and if others than its owner and group may write it."""
        file = Path(path)
        stamp = _stamp(file)
        bundle = cls(_read_bundle(file), file)
        bundle._stamp = stamp  # from before the reading: a change in between is then seen at the next use
        return bundle

    @classmethod
    def alone(cls, node: str, public: str) -> TrustBundle:
        """For one machine without a bundle: the node trusts its own key, for everything."""
        return cls({node: TrustEntry(public=[public], role="candidate")})

    def role(self, node: str) -> Role | None:
        """The node's role; None if it is not trusted."""
        self._refresh()
        entry = self._entries.get(node)
        return entry.role if entry else None

    def nodes(self) -> list[str]:
        self._refresh()
        return sorted(self._entries)

    def keys(self, node: str) -> list[Any]:
        """The node's public keys, as pyseto takes them. Raises RefusedError if it is not trusted."""
        self._refresh()
        entry = self._entries.get(node)
        if entry is None:
            hint = "Add its public key to the trust bundle of every candidate."
            raise RefusedError(f"Node {node[:60]!r} is not trusted here", code="unknown_node", hint=hint)
        if node not in self._keys:
            self._keys[node] = [Key.from_paserk(public) for public in entry.public]
        return self._keys[node]

    def _refresh(self) -> None:
        if self._path is None or (stamp := _stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._entries, self._keys = _read_bundle(self._path), {}
        except (LavaLiteError, OSError) as error:
            log.error("the changed trust bundle is not used", path=str(self._path), reason=str(error))
            return
        log.info("trust bundle reloaded", path=str(self._path), nodes=len(self._entries))


def _read_bundle(file: Path) -> dict[str, TrustEntry]:
    text = read_text(file)
    if file.stat().st_mode & 0o002:
        hint = f"Run chmod o-w {file}, and look at what stands in it."
        raise InputError(f"{file} may be written by everyone", code="bundle_exposed", hint=hint)
    # JSON is YAML too, but read in C: a bundle of ten thousand nodes must not hold up a leader. What fails here
    # (a double key as well) is read again as YAML, which can say what is wrong and where.
    with contextlib.suppress(ValueError):
        value = json.loads(text, object_pairs_hook=_without_doubles)
        return TrustTable.model_validate(value, strict=True).root
    return parse_config(text, str(file), TrustTable).root


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _new_paserk() -> str:
    return str(Key.from_asymmetric_key_params(4, d=secrets.token_bytes(_SEED_BYTES)).to_paserk())


def _private_key(paserk: str, path: Path | None) -> tuple[Any, str]:
    """(pyseto's key, public PASERK). Raises InputError that tells nothing of the content."""
    raw = _raw(paserk, _SECRET_HEADER, 2 * _SEED_BYTES)
    key = Key.from_asymmetric_key_params(4, d=raw[:_SEED_BYTES]) if raw else None
    if key is None or raw is None or key.to_paserk() != paserk:
        hint = "Restore it, or remove it: a new one is made, and its public half must go into the trust bundle."
        raise InputError(f"{path or 'this'} is no private key of a node", code="bad_key", hint=hint)
    return key, _PUBLIC_HEADER + base64.urlsafe_b64encode(raw[_SEED_BYTES:]).decode().rstrip("=")


def _raw(paserk: str, header: str, size_bytes: int) -> bytes | None:
    """The bytes in a PASERK, or None if it has another header, another size or another spelling."""
    text = paserk.removeprefix(header)
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    spelled = header + base64.urlsafe_b64encode(raw).decode().rstrip("=")
    return raw if len(raw) == size_bytes and spelled == paserk else None


def _write_once(file: Path, text: str) -> None:
    """Create `file` with all of `text`, or leave the one that another process made meanwhile."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, PRIVATE_MODE)
    try:
        with os.fdopen(descriptor, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink(missing_ok=True)
