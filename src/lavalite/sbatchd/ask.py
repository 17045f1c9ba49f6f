"""`lavalite-host`: how much this logical host has and may have; grow it, or give back.

Run inside a job on a logical host, or by root on the host's anchor. Which host and which job it is stand in the
environment; whether that is so the agent checks.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence

from lavalite import __version__
from lavalite.base.errors import InputError, LavaLiteError, RefusedError
from lavalite.model.amounts import asked, format_amount, parse_bandwidth, parse_bytes, parse_cpu, parse_gpu
from lavalite.model.resources import KINDS
from lavalite.wire.frames import HostAnswer, HostAsk
from lavalite.wire.question import ask_here

SOCKET_VARIABLE = "LAVALITE_AGENT_SOCKET"
SOCKET = "/var/lib/lavalite/sbatchd/inside.sock"
ANSWER_SECONDS = 100.0
_PARSERS = dict(zip(KINDS, (parse_cpu, parse_bytes, parse_gpu, parse_bytes, parse_bandwidth), strict=True))


def read_amounts(typed: Mapping[str, str | None]) -> dict[str, int]:
    """By kind, of what is given. Raises InputError with the option."""
    amounts = {}
    for kind in KINDS:
        if text := typed.get(kind):
            try:
                amounts[kind] = asked(_PARSERS[kind])(text)
            except InputError as error:
                raise error.at(f"--{kind}") from None
    return amounts


def ask(host: str, amounts: Mapping[str, int], environment: Mapping[str, str] = os.environ) -> HostAnswer:
    """What the leader says. Raises InputError, RefusedError, UnreachableError."""
    attempt = environment.get("LAVALITE_ATTEMPT_ID", "")
    inside = environment.get("LAVALITE_HOST", "")
    if host and inside and host != inside:
        raise InputError(f"this is inside {inside}, not {host}", field="HOST", hint="Ask inside that host.")
    if not (host or inside):
        raise InputError("this is inside no logical host", field="HOST", hint="Name one, as root on its anchor.")
    question = HostAsk(attempt=attempt if inside else "", host=host or inside, amounts=dict(amounts))
    return asyncio.run(_ask(environment.get(SOCKET_VARIABLE) or SOCKET, question))


async def _ask(socket: str, question: HostAsk) -> HostAnswer:
    answer = await ask_here(socket, "the agent", question, HostAnswer, timeout_seconds=ANSWER_SECONDS)
    if answer.code:
        raise RefusedError(answer.message, code=answer.code)
    return answer


def table(answer: HostAnswer) -> str:
    """What the host has, and what may be asked for, a line for each kind."""
    lines = [f"{answer.host}"]
    for kind in [k for k in KINDS if k in answer.amounts or k in answer.most]:
        line = f"  {kind:8} {format_amount(kind, answer.amounts.get(kind, 0))}"
        if kind in answer.most:
            least, most = format_amount(kind, answer.least.get(kind, 0)), format_amount(kind, answer.most[kind])
            line += f"  ({least} to {most})"
        lines.append(line)
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="lavalite-host", description="How much this logical host has and may have.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="show|grow")
    verbs.add_parser("show", help="say it").add_argument("host", nargs="?", default="")
    grow = verbs.add_parser("grow", help="let it have so much in all: more than it has, or less")
    grow.add_argument("host", nargs="?", default="")
    for kind, example in zip(KINDS, ("4", "8GiB", "2", "1TiB", "10Gbit/s"), strict=True):
        grow.add_argument(f"--{kind}", metavar=example)
    options = parser.parse_args(argv)
    try:
        amounts = read_amounts(vars(options)) if options.verb == "grow" else {}
        if options.verb == "grow" and not amounts:
            raise InputError("nothing is asked for", hint="Write --memory 8GiB, say.")
        print(table(ask(options.host, amounts)))
    except LavaLiteError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
