"""pools.yml: check it, plan with it, apply it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from lavalite.api.models import Definition, DefinitionPut, DefinitionResult
from lavalite.base.config import read_text
from lavalite.base.errors import InputError
from lavalite.cli.cluster import host_columns
from lavalite.cli.connect import Place, at_place
from lavalite.cli.output import Format, Output, listed, machine, say, working
from lavalite.model.pools import check_pools_file, load_pools
from lavalite.model.pools_document import PoolsDocument

if TYPE_CHECKING:
    from lavalite.api.client import Client

PoolsFile = Annotated[Path, typer.Argument(metavar="FILE", help="A pools.yml.", show_default=False)]


def definition_put(file: Path, *, purge: bool = False) -> DefinitionPut:
    """The file as it is sent. Raises InputError where it cannot be read."""
    return DefinitionPut(text=read_text(file), file=str(file), purge=purge)


def checked_file(file: Path) -> PoolsDocument:
    """The document, if it has no fault. Raises InputError with all of them."""
    text = read_text(file)
    faults = check_pools_file(text, str(file))
    if faults:
        raise InputError(faults=faults)
    return load_pools(text, str(file))


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What changes, as a unified diff of YAML; empty for nothing."""
    old, new = (yaml.safe_dump(d, sort_keys=False, allow_unicode=True).splitlines() for d in (before, after))
    return "\n".join(difflib.unified_diff(old, new, "before", "after", lineterm=""))


def apply_file(client: Client, file: Path, *, check: bool, purge: bool) -> DefinitionResult:
    """Apply the file, or only ask what that would change, and say so."""
    put = definition_put(file, purge=purge)
    result = working(lambda: client.put_definition(put, dry_run=check), "applying")
    if not result.changed:
        say(f"{file}: nothing changes, version {result.version} stands")
        return result
    say(difference(result.before, result.after))
    say(f"{file}: would change version {result.version}" if check else f"{file}: applied as version {result.version}")
    return result


def check(file: PoolsFile) -> None:
    """Check a pools.yml, and say all that is wrong with it. Asks no daemon."""
    document = checked_file(file)
    counted = [
        _count(len(document.pools), "pool"),
        _count(len(document.hosts()), "logical host"),
        _count(len(document.queues), "queue"),
    ]
    say(f"{file}: good: {', '.join(counted)}")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


@at_place
def apply(
    place: Place,
    file: PoolsFile,
    check: Annotated[bool, typer.Option("--check", help="Only show what would change.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="Remove what it owned and no longer has.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Apply a pools.yml, all of it or nothing."""
    with place.client() as client:
        if output in (Format.TABLE, Format.WIDE):
            apply_file(client, file, check=check, purge=purge)
        else:
            say(machine(client.put_definition(definition_put(file, purge=purge), dry_run=check), output))


@at_place
def show(place: Place, output: Output = Format.YAML) -> None:
    """Show what is applied."""
    with place.client() as client:
        found: Definition = working(client.definition)
    say(machine(found, Format.YAML if output in (Format.TABLE, Format.WIDE) else output))


@at_place
def plan(place: Place, file: PoolsFile, output: Output = Format.TABLE) -> None:
    """Show where the logical hosts of a pools.yml would be, were it applied now."""
    with place.client() as client:
        put = definition_put(file)
        found = working(lambda: client.plan(put), "planning")
    say(listed(found.hosts, host_columns, output))
