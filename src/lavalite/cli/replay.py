"""A placement once more, from its record: does the same come out?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from lavalite.base.errors import InputError, LavaLiteError
from lavalite.cli.connect import Place, at_place
from lavalite.cli.output import Format, Output, machine, moment, plain, say, working
from lavalite.model.decision import Chosen, DecisionRecord

FROM_HINT = "Give the number of a job, or --from a file that --save made."


@at_place
def replay(
    place: Place,
    job_id: Annotated[int | None, typer.Argument(metavar="JOB", min=1, help="The job's number.")] = None,
    task: Annotated[int | None, typer.Option(help="Which task of the job; else the one placed last.")] = None,
    save: Annotated[Path | None, typer.Option(help="Keep the record in this file.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Replay the record in this file.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Place a task once more, from the record of how it was placed, and say whether it goes to the same node."""
    record = _record(place, job_id, task, source)
    if save is not None:
        try:
            save.write_text(record.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise InputError(f"{save} cannot be written ({error.strerror})", field="--save") from None
    from lavalite.base.plugins import POLICIES_GROUP, registered
    from lavalite.placement.registry import add_policies
    from lavalite.placement.replay import replay as repeated

    add_policies(registered(POLICIES_GROUP))
    found = repeated(record)
    say(_text(record, found) if output in (Format.TABLE, Format.WIDE) else machine(record, output))
    if found != record.chosen:
        hint = "Was it made by another release, or by another version of the policy?"
        raise LavaLiteError("another place is chosen from the record", code="other_place", hint=hint)


def _record(place: Place, job_id: int | None, task: int | None, source: Path | None) -> DecisionRecord:
    if (job_id is None) == (source is None):
        raise InputError("either a job or a file has to be named", field="JOB", hint=FROM_HINT)
    if source is None:
        assert job_id is not None
        number = job_id
        with place.client() as client:
            return working(lambda: client.decision(number, task))
    try:
        return DecisionRecord.model_validate_json(source.read_bytes())
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror})", field="--from", hint=FROM_HINT) from None
    except ValidationError:
        raise InputError(f"{source} holds no record of a decision", field="--from", hint=FROM_HINT) from None


def _text(record: DecisionRecord, found: list[Chosen]) -> str:
    tasks = str(record.first_task)
    if record.last_task != record.first_task:
        tasks += f" to {record.last_task}"
    of = f"of {len(record.nodes)} nodes and hosts"
    head = f"job {record.job} task {tasks}: {record.policy} at {moment(record.at)}, {of}"
    return "\n".join([head, f"  placed    {_places(record.chosen)}", f"  replayed  {_places(found)}"])


def _places(chosen: list[Chosen]) -> str:
    return " ".join(f"{plain(c.node)}:{c.tasks}" if c.tasks > 1 else plain(c.node) for c in chosen) or "nowhere"
