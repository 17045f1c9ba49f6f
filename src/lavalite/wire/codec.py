"""Frames as bytes: 4 bytes of length, big-endian, then JSON. No I/O here.

feed(bytes) ─► buffer ─► length known? ─► whole frame there? ─► frame
                            │ 0 or > MAX_FRAME_BYTES   │ not JSON, unknown tag, wrong field
                            ▼                          ▼
                          broken ◄─────────────────────┘      (for good: what follows cannot be trusted)
"""

from __future__ import annotations

from pydantic import ValidationError

from lavalite.base.errors import LavaLiteError
from lavalite.wire.frames import FRAMES, MAX_FRAME_BYTES, AnyFrame

LENGTH_BYTES = 4


class FrameError(LavaLiteError):
    """What came, or was to be sent, is not a frame. The connection is of no more use. Never quotes the content."""

    default_code = "bad_frame"


def encode(frame: AnyFrame) -> bytes:
    """The frame with its length in front. Raises FrameError if it is longer than MAX_FRAME_BYTES."""
    body = FRAMES.dump_json(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(
            f"A frame {frame.type!r} of {len(body)} bytes is too long: at most {MAX_FRAME_BYTES} bytes are allowed",
            code="frame_too_long",
            hint="Send it in several frames.",
        )
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


class Decoder:
    """Turns a stream of bytes, cut anywhere, into frames. Holds at most one unfinished frame and what was fed."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fault: FrameError | None = None

    def feed(self, data: bytes) -> None:
        """Add bytes that arrived. After a fault they are thrown away."""
        if self._fault is None:
            self._buffer += data

    def next(self) -> AnyFrame | None:
        """The next whole frame, or None if more bytes are needed. Raises FrameError, and then always."""
        if self._fault is not None:
            raise self._fault
        try:
            return self._next()
        except FrameError as fault:
            self._fault = fault
            self._buffer.clear()
            raise

    def _next(self) -> AnyFrame | None:
        if len(self._buffer) < LENGTH_BYTES:
            return None
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
        if length == 0:
            raise FrameError("The peer sent an empty frame")
        if length > MAX_FRAME_BYTES:
            raise FrameError(
                f"The peer announced a frame of {length} bytes: at most {MAX_FRAME_BYTES} are allowed",
                code="frame_too_long",
                hint="Check that the peer speaks this protocol, and that both sides use TLS or neither does.",
            )
        end = LENGTH_BYTES + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[LENGTH_BYTES:end])
        del self._buffer[:end]
        return _parse(body)


def _parse(body: bytes) -> AnyFrame:
    try:
        return FRAMES.validate_json(body)
    except ValidationError as error:
        # Only pydantic's own words, never the input: it may hold a token.
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
            raise FrameError(
                "The peer sent a frame of a kind that is not known here",
                code="unknown_frame",
                hint="Bring both sides to the same release.",
            ) from None
        if first["type"] == "json_invalid":
            raise FrameError("The peer sent a frame that is not JSON") from None
        where = ".".join(str(part) for part in first["loc"])[:100]
        raise FrameError(f"The peer sent a frame with a wrong field, {where}: {first['msg'][:200]}") from None
