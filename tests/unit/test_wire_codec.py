"""Laws of the codec: frames come back however the bytes are cut; no bytes raise anything but FrameError."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavalite.wire.codec import Decoder, FrameError, encode
from lavalite.wire.frames import MAX_FRAME_BYTES, AnyFrame, Beat, Bye, Exchange, Hello, Leader, Output, WhoLeads

FRAMES = st.one_of(
    st.builds(Bye, reason=st.text()),
    st.builds(WhoLeads),
    st.builds(Beat, seq=st.integers(0, 2**63), sent=st.floats(0, 1e12), lost=st.integers(0, 9)),
    st.builds(Leader, node=st.text(), epoch=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 2**63))),
    st.builds(Output, stream_id=st.integers(), offset=st.integers(0), data_base64=st.text(max_size=300)),
)


def drain(decoder: Decoder) -> list[AnyFrame]:
    found = []
    while (frame := decoder.next()) is not None:
        found.append(frame)
    return found


def raw(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@given(st.lists(FRAMES, max_size=8), st.data())
def test_frames_survive_any_cut(frames: list[AnyFrame], data: st.DataObject) -> None:
    stream = b"".join(map(encode, frames))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder, found = Decoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoder.feed(stream[start:end])
        found += drain(decoder)
    assert found == frames


@given(st.lists(FRAMES, max_size=3), st.binary(max_size=300))
def test_garbage_is_a_frame_error_after_the_good_frames(frames: list[AnyFrame], garbage: bytes) -> None:
    decoder, found = Decoder(), []
    decoder.feed(b"".join(map(encode, frames)) + garbage)
    try:
        while (frame := decoder.next()) is not None:
            found.append(frame)
    except FrameError:
        with pytest.raises(FrameError):  # for good
            decoder.next()
        decoder.feed(encode(Bye()))
        with pytest.raises(FrameError):
            decoder.next()
    assert found[: len(frames)] == frames


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (bytes(4), "bad_frame"),
        ((MAX_FRAME_BYTES + 1).to_bytes(4, "big"), "frame_too_long"),
        (b"GET / HTTP/1.1\r\n\r\n", "frame_too_long"),
        (b"\x16\x03\x01\x02\x00\x01", "frame_too_long"),
        (raw(b"{"), "bad_frame"),
        (raw(b"\xff\xfe"), "bad_frame"),
        (raw(b"[]"), "bad_frame"),
        (raw(b"{}"), "unknown_frame"),
        (raw(b'{"type": "teleport"}'), "unknown_frame"),
        (raw(b'{"type": "beat", "seq": "x", "sent": 1}'), "bad_frame"),
        (raw(b"[" * 100_000), "bad_frame"),
    ],
)
def test_what_is_no_frame_has_a_code(stream: bytes, code: str) -> None:
    decoder = Decoder()
    decoder.feed(stream)
    with pytest.raises(FrameError) as caught:
        decoder.next()
    assert caught.value.code == code
    assert str(caught.value).count("\n") == 0


def test_a_field_from_a_later_release_is_ignored() -> None:
    decoder = Decoder()
    decoder.feed(raw(b'{"type": "bye", "reason": "x", "mood": "fine"}'))
    assert decoder.next() == Bye(reason="x")


def test_a_frame_of_the_greatest_length_passes_and_one_byte_more_is_refused() -> None:
    overhead = len(encode(Bye(reason=""))) - 4
    longest = Bye(reason="x" * (MAX_FRAME_BYTES - overhead))
    decoder = Decoder()
    decoder.feed(encode(longest))
    assert decoder.next() == longest
    with pytest.raises(FrameError) as caught:
        encode(Bye(reason="x" * (MAX_FRAME_BYTES - overhead + 1)))
    assert caught.value.code == "frame_too_long"


def test_secrets_are_quoted_neither_by_errors_nor_by_repr() -> None:
    decoder = Decoder()
    body = {"type": "hello", "software_version": "1", "cluster": "c", "node": 5, "role": "x", "token": "hush"}
    decoder.feed(raw(json.dumps(body).encode()))
    with pytest.raises(FrameError) as caught:
        decoder.next()
    assert "hush" not in str(caught.value)
    hello = Hello(software_version="1", cluster="c", node="n", role="lim", token="hush")
    assert "hush" not in repr(hello) and "hush" not in repr(Exchange(assertion="hush", audience="lim"))
