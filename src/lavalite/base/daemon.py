"""What the `main` of every daemon does: arguments, configuration, logs, signals, exit codes."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog
from pydantic import BaseModel

from lavalite.base.config import load_config
from lavalite.base.errors import LavaLiteError
from lavalite.base.logging import LEVELS, configure_logging, redact_text

EXIT_UNEXPECTED = 70
"""EX_SOFTWARE of sysexits.h: a fault of ours, not of the input or the surroundings."""

C = TypeVar("C", bound=BaseModel)
Serve = Callable[[C, asyncio.Event], Awaitable[None]]


def daemon_main(
    program: str,
    model: type[C],
    serve: Serve[C],
    argv: Sequence[str] | None = None,
    *,
    description: str = "",
    check: Callable[[C], None] | None = None,
) -> int:
    """Run `serve(config, stop)` until it returns; return the exit code.

    SIGTERM and SIGINT set `stop`; a second one cancels `serve`. SIGHUP is ignored: files that may change are watched
    by who reads them. `check` looks at what a model cannot (it raises LavaLiteError), also for --check-config.
    A LavaLiteError becomes its sentence on stderr and its exit code; anything else is logged with its traceback and
    becomes one sentence and EXIT_UNEXPECTED.
    """
    options = _arguments(program, description).parse_args(argv)
    log_json = not sys.stderr.isatty() if options.log_format is None else options.log_format == "json"
    configure_logging(options.log_level, log_json)
    try:
        config = load_config(options.config, model)
        if check is not None:
            check(config)
        if options.check_config:
            print(f"{options.config}: no fault found.")
            return 0
        return _run(serve, config)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseExceptionGroup as group:
        return _say(program, _leaves(group))
    except Exception as error:
        return _say(program, [error])


def _arguments(program: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=description or None)
    parser.add_argument("--config", required=True, metavar="FILE", help="the configuration, a YAML file")
    parser.add_argument(
        "--check-config", action="store_true", help="read the configuration, name all faults, and end"
    )
    parser.add_argument("--log-level", choices=LEVELS, default="info")
    parser.add_argument("--log-format", choices=("json", "console"), help="default: console on a terminal, else json")
    return parser


def _run(serve: Serve[C], config: C) -> int:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_until_stopped(serve, config))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _until_stopped(serve: Serve[C], config: C) -> int:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    task = asyncio.ensure_future(serve(config, stop))

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            task.cancel()
        structlog.get_logger(__name__).info("stopping", signal=number.name)
        stop.set()

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        return 128 + signal.SIGTERM
    return 0


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _say(program: str, errors: list[BaseException]) -> int:
    """One sentence for each known error; the traceback of the first that nobody foresaw goes to the log."""
    unforeseen = [error for error in errors if not isinstance(error, LavaLiteError)]
    if unforeseen:
        first = unforeseen[0]
        log = structlog.get_logger(__name__)
        log.error("unexpected error", exc_info=(type(first), first, first.__traceback__))
        print(f"{program}: something failed that was not foreseen; its log says what.", file=sys.stderr)
        return EXIT_UNEXPECTED
    for error in errors:
        print(redact_text(str(error)), file=sys.stderr)
    return max(error.exit_code for error in errors if isinstance(error, LavaLiteError))
