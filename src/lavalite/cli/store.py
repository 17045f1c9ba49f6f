"""What is kept of a cluster: whether it keeps the law, in the store or in a backup; and putting a backup back.

These act on the store itself and not on the API, so they need the scheduler's configuration and what it may read.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from pydantic import BaseModel

from lavalite.base.clock import SystemClock
from lavalite.base.config import load_config
from lavalite.base.errors import InputError
from lavalite.cli.output import Format, Output, fields, machine, plain, say

if TYPE_CHECKING:
    from lavalite.control.audit import Audit
    from lavalite.mbatchd.config import MbatchdConfig
    from lavalite.store.base import Record, Store
    from lavalite.store.keys import Keys

Answer = TypeVar("Answer")

CLUSTER_KEY = re.compile(r"/lavalite/([^/]+)/")
DEFAULT_CONFIG = Path("/etc/lavalite/mbatchd.conf")
Config = Annotated[Path, typer.Option("--config", metavar="FILE", help="The scheduler's configuration.")]


class StoreReport(BaseModel):
    """What `lavalite store check` found. The law holds where there are no faults."""

    store: str
    revision: int
    cluster: str
    generation: int
    records: int
    nodes: int
    hosts: int
    jobs: int
    unfinished_tasks: int
    commitments: int
    accounts: int
    notes: list[str]
    faults: list[str]


def check(
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="A backup, instead of the store.")
    ] = None,
    cluster: Annotated[str, typer.Option(help="Which cluster must be in the backup.")] = "",
    config: Config = DEFAULT_CONFIG,
    output: Output = Format.TABLE,
) -> int:
    """Add up what is kept: who holds what, and whether that is what there is. Changes nothing."""
    report = _of_file(file, cluster) if file else _of_store(_scheduler_config(config))
    say(_text(report) if output in (Format.TABLE, Format.WIDE) else machine(report, output))
    return 1 if report.faults else 0


def save(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="Where to. It must not be there.")],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Save an SQLite store while it is in use."""
    from lavalite.store.sqlite_saved import save_sqlite

    if target.exists():
        raise InputError(f"{target} is there already", field="FILE", hint="Name another file, or move it away.")
    source = _sqlite_path(config)
    _on_disk(target, lambda: save_sqlite(source, target))
    say(f"saved {source} as {target}")


def restore(
    saved: Annotated[Path, typer.Argument(metavar="FILE", help="What `lavalite store save` wrote.")],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Put a saved SQLite store back, while nothing uses it. What was there is kept beside it."""
    from lavalite.store.sqlite_saved import BEFORE_RESTORE, restore_sqlite

    settings = _scheduler_config(config)
    target = _sqlite_path(config)
    report = _of_file(saved, settings.cluster)
    if report.faults:
        raise InputError(f"{saved} does not keep the law: {report.faults[0]}", field="FILE", hint="Take another one.")
    _on_disk(target, lambda: restore_sqlite(saved, target))
    say(f"restored {target}; what was there is in {target}{BEFORE_RESTORE}")


def new_generation(
    above: Annotated[int, typer.Option(min=0, help="The highest generation that anybody has seen.")] = 0,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Begin a new generation, after the store was put back to what it was. Whoever leads is deposed."""
    from lavalite.ledger.generation import raise_generation

    def begin(store: Store, keys: Keys) -> Awaitable[int]:
        return raise_generation(store, keys, above)

    say(json.dumps({"generation": _with_store(_scheduler_config(config), begin)}))


def _scheduler_config(path: Path) -> MbatchdConfig:
    from lavalite.mbatchd.config import MbatchdConfig

    return load_config(path, MbatchdConfig)


def _sqlite_path(config: Path) -> Path:
    """Raises InputError where the store is another one."""
    path = _scheduler_config(config).store.path
    if path is None:
        hint = "Use etcdctl snapshot save, or playbooks/backup.yml and playbooks/restore.yml."
        raise InputError("the store is etcd", field="store.kind", hint=hint)
    return path


def _on_disk(path: Path, act: Callable[[], None]) -> None:
    """Raises InputError where the disk does not let us."""
    try:
        act()
    except OSError as error:
        hint = "Check the folder, its permissions, and the room on its disk."
        raise InputError(f"cannot write {path}: {error.strerror or error}", hint=hint) from None


def _with_store(config: MbatchdConfig, ask: Callable[[Store, Keys], Awaitable[Answer]]) -> Answer:
    from lavalite.store.keys import Keys
    from lavalite.store.open import open_store

    async def asked() -> Answer:
        store = await open_store(config.store, SystemClock())
        try:
            return await ask(store, Keys(config.cluster))
        finally:
            await store.close()

    return asyncio.run(asked())


def _of_store(config: MbatchdConfig) -> StoreReport:
    """All at one revision, also while others write."""
    from lavalite.store.base import range_all

    path = config.store.path
    if path is not None and not path.exists():  # never made by looking
        raise InputError(f"there is no store {path}", field="store.path", hint="Start the cluster first.")

    async def read(store: Store, keys: Keys) -> tuple[str, list[Record], int]:
        records, revision = await range_all(store, keys.root)
        status = await store.status()
        return f"{status.kind} {status.version}, {status.endpoint}", records, revision

    named, records, revision = _with_store(config, read)
    return _report(named, revision, records, config.cluster)


def _of_file(file: Path, cluster: str) -> StoreReport:
    """Raises InputError where the file is no backup, or one of another cluster."""
    from lavalite.store.keys import Keys
    from lavalite.store.open_saved import read_saved

    saved = read_saved(file)
    held = sorted({match[1] for record in saved.records if (match := CLUSTER_KEY.match(record.key))})
    wanted = cluster or (held[0] if len(held) == 1 else "")
    if wanted not in held:
        named = " and ".join(held) or "no cluster"
        hint = "Name one with --cluster." if held and not cluster else "Take a backup of that one."
        message = f"{file} is a backup of {named}" + (f", and not of {cluster}" if cluster else "")
        raise InputError(message, code="another_cluster", field="--cluster", hint=hint)
    root = Keys(wanted).root
    records = [record for record in saved.records if record.key.startswith(root)]
    return _report(f"{saved.kind} backup, {file}", saved.revision, records, wanted)


def _report(store: str, revision: int, records: list[Record], cluster: str) -> StoreReport:
    stored = {record.key: record.value for record in records}
    return StoreReport(store=store, revision=revision, **asdict(_audit(cluster, stored)))


def _audit(cluster: str, stored: dict[str, bytes]) -> Audit:
    from lavalite.control.audit import Audit, audit
    from lavalite.mbatchd.document import stored_specs
    from lavalite.store.keys import Keys

    keys = Keys(cluster)
    try:
        specs = stored_specs(stored.get(keys.definition, b""), cluster)
    except (InputError, ValueError) as error:
        return Audit(cluster, records=len(stored), faults=[f"the record definition cannot be read: {error}"])
    return audit(keys, stored, specs)


def _text(report: StoreReport) -> str:
    """Faults last, where eyes end up."""
    verdict = "holds" if not report.faults else f"BROKEN, {len(report.faults)} faults"
    shown = fields(
        [
            ("store", report.store),
            ("cluster", report.cluster),
            ("revision", report.revision),
            ("generation", report.generation),
            ("records", report.records),
            ("nodes", report.nodes),
            ("hosts", report.hosts),
            ("jobs", f"{report.jobs}, {report.unfinished_tasks} unfinished tasks"),
            ("commitments", f"{report.commitments} on {report.accounts} accounts"),
            ("law", verdict),
        ]
    )
    found = [f"note: {note}" for note in report.notes] + [f"fault: {fault}" for fault in report.faults]
    return "\n".join([shown, *map(plain, found)])
