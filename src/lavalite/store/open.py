"""From configuration to an open store. etcd's library is imported only where etcd is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lavalite.base.clock import Clock
from lavalite.base.errors import InputError
from lavalite.store.base import Store
from lavalite.store.endpoints import parse_endpoints
from lavalite.store.sqlite import SqliteStore

ETCD_ONLY = ("endpoints", "ca_path", "cert_path", "key_path", "username", "password_path", "quota_bytes")


class StoreConfig(BaseModel):
    """Where records are kept: `kind: sqlite` with a `path`, or `kind: etcd` with `endpoints`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["sqlite", "etcd"]
    path: Path | None = Field(None, description="sqlite: the file. Its folder must exist.")
    endpoints: tuple[str, ...] = Field((), description="etcd: HOST:PORT or https://HOST:PORT of each member.")
    ca_path: Path | None = Field(
        None, description="etcd: certificates (PEM) that may vouch for a member; turns TLS on."
    )
    cert_path: Path | None = Field(None, description="etcd: our client certificate (PEM).")
    key_path: Path | None = Field(None, description="etcd: the key of our client certificate (PEM).")
    username: str | None = None
    password_path: Path | None = Field(None, description="etcd: a file that holds the password and nothing else.")
    quota_bytes: int | None = Field(
        None, ge=1, description="etcd: its quota-backend-bytes, where it is before 3.6 and does not tell. 2 GiB."
    )
    timeout_seconds: float = Field(5.0, gt=0, le=300, description="Deadline of one call.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "sqlite":
            if self.path is None:
                raise ValueError("kind sqlite needs a path, such as /var/lib/lavalite/store.db.")
            foreign = [name for name in ETCD_ONLY if getattr(self, name)]
            if foreign:
                raise ValueError(f"{', '.join(foreign)} belong to kind etcd. Remove them, or set kind: etcd.")
            return self
        if self.path is not None:
            raise ValueError("path belongs to kind sqlite. Remove it, or set kind: sqlite.")
        tls = parse_endpoints(self.endpoints, tls=self.ca_path is not None)[0].tls
        if (self.cert_path is None) != (self.key_path is None):
            raise ValueError("cert_path and key_path go together. Set both or neither.")
        if not tls and (self.ca_path or self.cert_path):
            raise ValueError("certificates are given but the endpoints are http. Write https://.")
        if (self.username is None) != (self.password_path is None):
            raise ValueError("username and password_path go together. Set both or neither.")
        return self


async def open_store(config: StoreConfig, clock: Clock) -> Store:
    """The store that `config` names. Raises StoreUnavailable (sqlite), InputError for files that cannot be read.

    An etcd that is down is no error here: it shows at the first call, and watches wait for it.
    """
    if config.kind == "sqlite":
        assert config.path is not None
        return await SqliteStore.open(config.path, clock=clock, timeout_seconds=config.timeout_seconds)
    try:
        from lavalite.store.etcd import EtcdStore
    except ImportError as error:
        hint = "Install lavalite[control], or use kind: sqlite."
        raise InputError(f"etcd's client library is missing ({error.name})", field="store.kind", hint=hint) from None
    return await EtcdStore.open(
        list(config.endpoints),
        clock=clock,
        timeout_seconds=config.timeout_seconds,
        ca_path=config.ca_path,
        cert_path=config.cert_path,
        key_path=config.key_path,
        username=config.username,
        password=_secret(config.password_path),
        quota_bytes=config.quota_bytes,
    )


def _secret(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        hint = "Check the path and that this user may read it."
        raise InputError(f"{path} cannot be read ({error})", field="store.password_path", hint=hint) from None
