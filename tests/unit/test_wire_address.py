"""Addresses: what is read is what is written back; what other machines could reach needs TLS or a word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavalite.base.errors import InputError
from lavalite.wire.address import Address, check_listener, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7869", Address("127.0.0.1", 7869)),
        ("[::1]:1", Address("::1", 1)),
        ("[fe80::1%eth0]:65535", Address("fe80::1%eth0", 65535)),
        ("n1.example.org:0", Address("n1.example.org", 0)),
        ("unix:/run/lavalite/lim.sock", Address(path="/run/lavalite/lim.sock")),
    ],
)
def test_addresses_are_read_and_written_alike(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "n1", "n1:", ":80", "n1:-1", "n1:65536", "n1:080000", "n1:８０", "::1:80", "[]:80", "a b:80"),
        *("unix:", "unix:x", "unix:/" + "x" * 107),
    ],
)
def test_what_is_no_address_is_a_sentence(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_address(text, "listen")
    assert caught.value.faults[0].field == "listen" and caught.value.faults[0].hint


@given(st.text(max_size=30))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        parsed = parse_address(text)
    except InputError:
        return
    assert parse_address(str(parsed)) == parsed


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1", "unix:/x"]
)
def test_a_local_listener_needs_no_tls(address: str) -> None:
    check_listener(address, tls=False, insecure=False)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.example.org:1", "*:1"])
def test_a_listener_for_others_needs_tls_or_a_word(address: str) -> None:
    with pytest.raises(InputError) as caught:
        check_listener(address, tls=False, insecure=False)
    assert caught.value.code == "insecure_listener" and "insecure: true" in str(caught.value)
    check_listener(address, tls=True, insecure=False)
    check_listener(address, tls=False, insecure=True)
