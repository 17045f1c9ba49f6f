"""The one configuration of mbatchd."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from lavalite.base.config import Config
from lavalite.control.settings import Settings
from lavalite.model.job import Name
from lavalite.store.open import StoreConfig
from lavalite.wire.tls import TlsConfig


class Retention(Config):
    """How many finished jobs stay, and for how long."""

    finished_jobs: int = Field(default=10_000, ge=0, le=1_000_000)
    age_seconds: int = Field(default=7 * 24 * 3600, ge=60)


class BackPressure(Config):
    """From when on submits are told to come again later. Jobs that have not ended count, and an array is one."""

    jobs: int = Field(default=200_000, ge=1)
    jobs_per_user: int = Field(default=100_000, ge=1)
    commit_queue: int = Field(default=10_000, ge=1)
    """Writes that wait for the store."""
    store_percent: int = Field(default=80, ge=1, le=95)
    """Of etcd's quota, what is in use. Its file may have FILE_PERCENT of it."""


class MbatchdConfig(Config):
    """`listen` is for agents, `api_listen` and `api_socket_path` for people and Prometheus."""

    cluster: Name
    node: Name
    state_path: Path
    lim_socket_path: Path
    store: StoreConfig
    listen: str = "127.0.0.1:6881"
    api_listen: str = "127.0.0.1:6880"
    advertise: str = ""
    api_url: str = ""
    api_socket_path: Path | None = None
    trust_bundle_path: Path | None = None
    tls: TlsConfig | None = None
    insecure: bool = False
    retention: Retention = Retention()
    beat_seconds: float = Field(default=2.0, gt=0, le=60)
    silent_after_seconds: float = Field(default=10.0, gt=0)
    compose_seconds: float = Field(default=120.0, gt=0)
    """A part of a logical host that is not ready by then has failed."""
    let_go_seconds: float = Field(default=120.0, gt=0)
    """A host that is taken apart waits no longer for a node that is not connected."""
    back_pressure: BackPressure = BackPressure()
    max_unfinished_tasks: int = Field(default=5_000_000, ge=1)

    @model_validator(mode="after")
    def _beats(self) -> MbatchdConfig:
        if self.silent_after_seconds <= 2 * self.beat_seconds:
            raise ValueError("silent_after_seconds must be more than two beats (beat_seconds)")
        return self

    @property
    def socket_path(self) -> Path:
        return self.api_socket_path or self.state_path / "api.sock"

    @property
    def bundle_path(self) -> Path:
        """Where nobody laid down a bundle, the LIM beside us says whom it trusts: its own key."""
        return self.trust_bundle_path or self.lim_socket_path.parent / "trust.json"

    @property
    def settings(self) -> Settings:
        return Settings(
            beat_seconds=self.beat_seconds,
            silent_after_seconds=self.silent_after_seconds,
            compose_seconds=self.compose_seconds,
            let_go_seconds=self.let_go_seconds,
            keep_finished_jobs=self.retention.finished_jobs,
            keep_finished_seconds=self.retention.age_seconds,
        )
