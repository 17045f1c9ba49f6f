"""`lavalite`: verbs, exit codes, and the last wall in front of a person.

Exit codes: 0 done, 1 failed, 2 wrong input, 3 not reachable, 130 ended by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from lavalite.base.errors import InputError, LavaLiteError
from lavalite.cli import (
    cluster,
    console,
    definition,
    inside,
    jobs,
    replay,
    reservations,
    simulate,
    store,
    submit,
    up_down,
)

EXIT_INTERRUPTED = 130
EXIT_UNEXPECTED = 70
"""EX_SOFTWARE of sysexits.h: a fault of ours."""
DEBUG_VARIABLE = "LAVALITE_DEBUG"

JOBS, CLUSTER, LOCAL, DEFINITION = "Jobs", "Cluster", "On this machine", "pools.yml"


def make_app() -> typer.Typer:
    """All verbs."""
    app = typer.Typer(
        name="lavalite",
        help="Pools of CPU, memory, GPU, storage and network, used as logical hosts.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for verb in (up_down.up, up_down.down, cluster.resign):
        app.command(rich_help_panel=LOCAL)(verb)
    for verb in (
        cluster.status,
        cluster.nodes,
        cluster.pools,
        cluster.queues,
        cluster.hosts,
        cluster.shares,
        cluster.quotas,
    ):
        app.command(rich_help_panel=CLUSTER)(verb)
    for verb in (reservations.reservations, reservations.reserve, reservations.unreserve):
        app.command(rich_help_panel=CLUSTER)(verb)
    for verb in (cluster.drain, cluster.undrain, cluster.label, cluster.forget, console.console):
        app.command(rich_help_panel=CLUSTER)(verb)
    host = typer.Typer(help="One logical host.", no_args_is_help=True)
    for name, verb in (("drain", cluster.drain_host), ("resume", cluster.resume_host), ("apply", cluster.apply_host)):
        host.command(name)(verb)
    host.command()(inside.grow)
    app.add_typer(host, name="host", rich_help_panel=CLUSTER)
    # The first word that is no option of ours is the command, and all after it are its own.
    app.command(rich_help_panel=JOBS, context_settings={"allow_interspersed_args": False})(submit.submit)
    for verb in (jobs.jobs, jobs.job, jobs.tasks, jobs.logs, jobs.explain, jobs.cancel, jobs.hold, jobs.release):
        app.command(rich_help_panel=JOBS)(verb)
    app.command(rich_help_panel=JOBS)(replay.replay)
    for verb in (jobs.suspend, jobs.resume, jobs.requeue):
        app.command(rich_help_panel=JOBS)(verb)
    for verb in (definition.check, definition.plan):
        app.command(rich_help_panel=DEFINITION)(verb)
    app.command(rich_help_panel=LOCAL)(simulate.simulate)
    document = typer.Typer(help="The applied pools.yml.", no_args_is_help=True)
    document.command()(definition.show)
    document.command()(definition.apply)
    app.add_typer(document, name="definition", rich_help_panel=DEFINITION)
    kept = typer.Typer(help="What is kept, in the store and in backups.", no_args_is_help=True)
    for verb in (store.check, store.save, store.restore, store.new_generation):
        kept.command()(verb)
    app.add_typer(kept, name="store", rich_help_panel=LOCAL)
    app.command(rich_help_panel=LOCAL)(cluster.version)
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Do what was typed; the exit code. Nothing but KeyboardInterrupt and the like leaves it."""
    try:
        code = make_app()(arguments, prog_name="lavalite", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except LavaLiteError as error:
        return _say(str(error), error.exit_code)
    except typer.TyperException as error:
        return _say(_usage(error), InputError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough. Python's own flush at exit must not find the broken pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return _say(f"That was not foreseen ({what}). Set {DEBUG_VARIABLE}=1 to see where.", EXIT_UNEXPECTED)


def _usage(error: typer.TyperException) -> str:
    """The parser's sentence, and where to read on."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "lavalite"
    message = error.format_message().strip()
    if not message:  # a group without a verb: its help is printed already
        return ""
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} See `{path} --help`."


def _say(text: str, code: int) -> int:
    if text:
        sys.stderr.write(text.rstrip("\n") + "\n")
    return code


def main() -> None:
    """The console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
