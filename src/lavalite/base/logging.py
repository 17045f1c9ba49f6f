"""Logs go to stderr: JSON lines for machines, or plain text for a terminal. Secrets are taken out on the way.

Two nets: values under keys that name a secret, and anything anywhere (tracebacks too) that looks like one of our
tokens or private keys.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = ("debug", "info", "warning", "error")
REDACTED = "[redacted]"
SECRET_KEYS = ("token", "assertion", "password", "private_key", "secret", "authorization")
_SECRET_TEXT = re.compile(r"\b(v4\.public\.|k4\.secret\.|[Bb]earer )[A-Za-z0-9_.=+/-]+")
_DEEPEST = 8


def configure_logging(level: str = "info", json: bool = True) -> None:
    """Set up structlog and the standard library's logging alike. `level` is one of LEVELS. May be called again."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    render: Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
        if json
        else structlog.dev.ConsoleRenderer(
            # Not the one with local variables: those hold secrets that no net would catch.
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, redact_event, render],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def redact_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The structlog processor: `event` without its secrets. A copy, as the values belong to the caller."""
    return {key: _redacted(key, value, 0) for key, value in event.items()}


def is_secret(key: str) -> bool:
    """Whether a field of this name holds a secret: `token`, `api_token`, but not `token_path`."""
    name = key.lower().replace("-", "_")
    return any(name == secret or name.endswith(f"_{secret}") for secret in SECRET_KEYS)


def redact_text(text: str) -> str:
    """`text` without anything that looks like a token or a private key."""
    return _SECRET_TEXT.sub(rf"\1{REDACTED}", text)


def _redacted(key: str, value: Any, depth: int) -> Any:
    if is_secret(key) and value not in (None, "", b""):
        return REDACTED
    if isinstance(value, str):
        return redact_text(value)
    if depth >= _DEEPEST or isinstance(value, int | float | None):
        return value
    if isinstance(value, Mapping):
        return {str(k): _redacted(str(k), v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted("", item, depth + 1) for item in value]
    return redact_text(str(value))
