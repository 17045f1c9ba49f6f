"""Laws of tokens: only the whole truth passes, and nothing but RefusedError comes out of a bad one."""

from __future__ import annotations

import base64
import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lavalite.base.errors import InputError, RefusedError
from lavalite.wire.keys import NodeKey, TrustBundle, TrustEntry
from lavalite.wire.tokens import Claims, Person, issue_token, sign_assertion, verify, verify_assertion

KEYS = {name: NodeKey.generate() for name in ("c1", "w1", "s1", "stranger")}
BUNDLE = TrustBundle(
    {
        "c1": TrustEntry(public=[KEYS["c1"].public], role="candidate"),
        "w1": TrustEntry(public=[KEYS["w1"].public], role="worker"),
        "s1": TrustEntry(public=[KEYS["s1"].public], role="submit"),
    }
)
NOW, EPOCH, ANN = 1_700_000_000.25, (1, 7), "user:ann:1000:100"
FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def token(by: str = "c1", subject: str = "w1", audience: str = "mbatchd", epoch=EPOCH, lifetime: float = 300) -> str:
    return issue_token(KEYS[by], by, subject, audience, epoch, NOW, lifetime)[0]


def check(text: str, subject: str | None = "w1", audience: str = "mbatchd", epoch=EPOCH, now: float = NOW) -> Claims:
    return verify(text, BUNDLE, subject=subject, audience=audience, epoch=epoch, now=now)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(RefusedError) as caught:
        call(*args, **kwargs)
    return caught.value.code


def signed(by: str, claims: dict[str, object], purpose: bytes = b"lavalite token 1") -> str:
    return KEYS[by].sign(json.dumps(claims).encode(), by.encode(), purpose)


def test_a_good_token_says_who() -> None:
    assert check(token()) == Claims("w1", "mbatchd", EPOCH, NOW // 1 + 300.25, "c1", "worker")
    assert check(token(subject=ANN, audience="api"), subject=None, audience="api").role == "user"


@FAST
@given(st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    raw = bytearray(token().encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert refusal(check, raw.decode("latin-1")) in ("bad_token", "unknown_node")


def test_every_last_character_but_one_is_refused() -> None:
    """Base64 leaves bits of a part's last character unused: other spellings of the same bytes are refused."""
    header, purpose, body, footer = token().split(".")
    for character in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=":
        for other in (f"{body[:-1]}{character}.{footer}", f"{body}.{footer[:-1]}{character}"):
            if other != f"{body}.{footer}":
                assert refusal(check, f"{header}.{purpose}.{other}") in ("bad_token", "unknown_node")


@FAST
@given(st.text(max_size=200) | st.text(alphabet="v4.public-_Aa=", max_size=200).map("v4.public.".__add__))
def test_garbage_is_refused(text: str) -> None:
    assert refusal(check, text) in ("bad_token", "unknown_node")
    assert refusal(verify_assertion, text, BUNDLE, audience="lim", now=NOW) in ("bad_token", "unknown_node")


@FAST
@given(
    st.sampled_from(["w1", "s1", "c1"]),
    st.sampled_from(["mbatchd", "api", "lim"]),
    st.none() | st.tuples(st.integers(0, 3), st.integers(0, 9)),
    st.floats(-1000, 1000),
    st.floats(0.01, 300),
)
def test_only_the_whole_truth_passes(subject, audience, epoch, later, lifetime) -> None:
    text = token(lifetime=lifetime)
    # 0.002: expiry is rounded down to a millisecond, and floats at 1.7e9 have steps of 2.4e-7
    true = (subject, audience, epoch) == ("w1", "mbatchd", EPOCH) and -10 <= later < lifetime - 0.002
    false = (subject, audience, epoch) != ("w1", "mbatchd", EPOCH) or later < -10.001 or later >= lifetime
    if true:
        check(text, subject, audience, epoch, NOW + later)
    elif false:
        refusal(check, text, subject, audience, epoch, NOW + later)


def test_each_lie_has_its_code() -> None:
    assert refusal(check, token(), subject="c1") == "wrong_subject"
    assert refusal(check, token(), audience="api") == "wrong_audience"
    assert refusal(check, token(), epoch=(1, 8)) == "wrong_epoch"
    assert refusal(check, token(), epoch=(0, 7)) == "wrong_epoch"
    assert refusal(check, token(), now=NOW + 300) == "token_expired"
    assert refusal(check, token(), now=NOW - 11) == "clock_skew"


@pytest.mark.parametrize("by", ["w1", "s1"])
def test_only_candidates_issue(by: str) -> None:
    assert refusal(check, token(by)) == "not_an_issuer"


def test_a_strangers_signature_is_worth_nothing() -> None:
    assert refusal(check, token("stranger")) == "unknown_node"
    forged = issue_token(KEYS["stranger"], "c1", "w1", "mbatchd", EPOCH, NOW)[0]
    assert refusal(check, forged) == "bad_token"
    as_candidate = issue_token(KEYS["w1"], "c1", "w1", "mbatchd", EPOCH, NOW)[0]
    assert refusal(check, as_candidate) == "bad_token"


def test_a_subject_that_is_not_in_the_bundle_is_refused() -> None:
    assert refusal(check, token(subject="gone"), subject=None) == "unknown_node"
    assert refusal(check, token(subject="user:ann"), subject=None) == "unknown_node"


def test_no_token_lives_longer_than_five_minutes() -> None:
    for seconds in (0, -1, 300.1, float("inf"), float("nan")):
        with pytest.raises(InputError):
            token(lifetime=seconds)
    claims = {"sub": "w1", "aud": "mbatchd", "epoch": EPOCH, "issued_at": NOW, "expires_at": NOW + 301}
    assert refusal(check, signed("c1", claims)) == "token_too_long"


def test_a_token_without_an_epoch_is_good_only_where_there_is_none() -> None:
    unbound = token(audience="lim", epoch=None)
    assert check(unbound, audience="lim", epoch=None).epoch is None
    assert refusal(check, unbound, audience="lim") == "wrong_epoch"
    assert refusal(check, token(audience="lim"), audience="lim", epoch=None) == "wrong_epoch"
    with pytest.raises(InputError):
        token(epoch=None)
    claims = {"sub": "w1", "aud": "mbatchd", "epoch": None, "issued_at": NOW, "expires_at": NOW + 9}
    assert refusal(check, signed("c1", claims), epoch=None) == "wrong_epoch"


@pytest.mark.parametrize("left_out", ["sub", "aud", "epoch", "issued_at", "expires_at"])
@pytest.mark.parametrize("instead", [None, "text", True, [], [1], {"a": 1}])
def test_a_signed_token_lacking_a_claim_is_refused(left_out: str, instead: object) -> None:
    claims: dict[str, object] = {
        "sub": "w1", "aud": "mbatchd", "epoch": EPOCH, "issued_at": NOW, "expires_at": NOW + 60,
    }  # fmt: skip
    check(signed("c1", claims))
    refusal(check, signed("c1", claims | {left_out: instead}))
    del claims[left_out]
    assert refusal(check, signed("c1", claims)) == "bad_token"


def test_an_assertion_is_good_for_a_minute_and_its_audience() -> None:
    text = sign_assertion(KEYS["w1"], "w1", "lim", NOW)
    good = verify_assertion(text, BUNDLE, audience="lim", now=NOW + 60)
    assert (good.node, good.role, good.subject) == ("w1", "worker", "w1")
    assert refusal(verify_assertion, text, BUNDLE, audience="lim", now=NOW + 60.5) == "assertion_expired"
    assert refusal(verify_assertion, text, BUNDLE, audience="lim", now=NOW - 11) == "clock_skew"
    assert refusal(verify_assertion, text, BUNDLE, audience="api", now=NOW) == "wrong_audience"
    as_another = sign_assertion(KEYS["w1"], "c1", "lim", NOW)
    assert refusal(verify_assertion, as_another, BUNDLE, audience="lim", now=NOW) == "bad_token"


@pytest.mark.parametrize(("by", "good"), [("s1", True), ("c1", True), ("w1", False)])
def test_a_worker_vouches_for_nobody(by: str, good: bool) -> None:
    text = sign_assertion(KEYS[by], by, "lim", NOW, subject=ANN)
    if good:
        assert verify_assertion(text, BUNDLE, audience="lim", now=NOW).subject == ANN
    else:
        assert refusal(verify_assertion, text, BUNDLE, audience="lim", now=NOW) == "not_a_voucher"


def test_nobody_vouches_for_another_node() -> None:
    text = sign_assertion(KEYS["c1"], "c1", "lim", NOW, subject="w1")
    assert refusal(verify_assertion, text, BUNDLE, audience="lim", now=NOW) == "not_a_voucher"


def test_an_assertion_is_no_token_and_a_token_no_assertion() -> None:
    assert refusal(check, sign_assertion(KEYS["c1"], "c1", "mbatchd", NOW), subject="c1") == "bad_token"
    claims = {"sub": "c1", "aud": "lim", "issued_at": NOW}
    assert refusal(verify_assertion, signed("c1", claims), BUNDLE, audience="lim", now=NOW) == "bad_token"


@pytest.mark.parametrize(
    "subject",
    [
        *("ann", "user:ann", "user:ann:1", "user::1:1", "user:a b:1:1", "user:ann:01:1", "user:ann:-1:1"),
        *("user:ann:1:1:1", "user:ann:4294967295:1", "user:ann:1:4294967295", "user:a\n:1:1", "user:ann:１:1"),
        "USER:ann:1:1",
    ],
)
def test_a_person_is_spelled_in_one_way(subject: str) -> None:
    assert Person.parse(subject) is None


def test_a_person_comes_back() -> None:
    assert Person.parse(ANN) == Person("ann", 1000, 100)
    assert Person("ann", 1000, 100).subject == ANN


# --- keys and bundles -----------------------------------------------------------------------------------------


def write_bundle(path: Path, role: str = "candidate", **keys: NodeKey) -> None:
    text = "".join(f"{node}:\n  public: {key.public}\n  role: {role}\n" for node, key in keys.items())
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "node.key"
    key = NodeKey.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert NodeKey.load_or_create(path).public == key.public
    assert [file.name for file in path.parent.iterdir()] == ["node.key"]


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    NodeKey.load_or_create(path)
    path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        NodeKey.load_or_create(path)


def test_a_private_key_never_shows(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    key = NodeKey.load_or_create(path)
    secret = path.read_text().strip()
    assert secret not in repr(key) and secret not in str(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)
    path.write_text(secret[:-3])
    with pytest.raises(InputError) as caught:
        NodeKey.load_or_create(path)
    assert secret[:30] not in str(caught.value) and caught.value.__cause__ is None
    for content in ("", "k4.secret.", "k4.secret." + "A" * 86, key.public, "é"):
        path.write_text(content)
        with pytest.raises(InputError):
            NodeKey.load_or_create(path)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_bundle_is_read_from_yaml_and_json(tmp_path: Path, as_json: bool) -> None:
    path = tmp_path / "trust"
    c1, w1 = KEYS["c1"].public, KEYS["w1"].public
    entries = {"c1": {"public": [c1], "role": "candidate"}, "w1": {"public": w1, "role": "worker"}}
    as_yaml = f"c1: {{public: [{c1}], role: candidate}}\nw1:\n  public: {w1}\n  role: worker\n"
    path.write_text(json.dumps(entries) if as_json else as_yaml)
    bundle = TrustBundle.load(path)
    assert bundle.nodes() == ["c1", "w1"] and bundle.role("w1") == "worker" and bundle.role("x") is None
    assert verify(token(), bundle, subject="w1", audience="mbatchd", epoch=EPOCH, now=NOW).issuer == "c1"


def test_a_bad_bundle_names_all_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "trust"
    path.write_text(
        f"c1: {{public: k4.public.short, role: king}}\nw1: {{publick: {KEYS['w1'].public}, role: worker}}\n"
    )
    with pytest.raises(InputError) as caught:
        TrustBundle.load(path)
    fields = [(fault.line, fault.field) for fault in caught.value.faults]
    assert fields == [(1, "c1.public"), (1, "c1.role"), (2, "w1.public"), (2, "w1.publick")]
    assert "Did you mean public?" in str(caught.value)
    entry = json.dumps({"public": KEYS["w1"].public, "role": "worker"})
    path.write_text(f'{{"user:ann:0:0": {entry}}}')
    with pytest.raises(InputError, match="cannot be a node's name"):
        TrustBundle.load(path)
    path.write_text(f'{{"c1": {entry}, "c1": {entry}}}')
    with pytest.raises(InputError, match="written twice"):
        TrustBundle.load(path)


def test_a_bundle_that_everyone_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trust"
    write_bundle(path, c1=KEYS["c1"])
    path.chmod(0o666)
    with pytest.raises(InputError, match="written by everyone"):
        TrustBundle.load(path)


def test_a_changed_bundle_counts_at_once_and_a_broken_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "trust"
    write_bundle(path, c1=KEYS["c1"])
    bundle = TrustBundle.load(path)
    text = token(subject="c1")

    def passes() -> bool:
        try:
            verify(text, bundle, subject="c1", audience="mbatchd", epoch=EPOCH, now=NOW)
        except RefusedError:
            return False
        return True

    assert passes()
    write_bundle(path, role="worker", c1=KEYS["c1"])
    assert not passes()
    write_bundle(path, c1=KEYS["stranger"])
    assert not passes()
    write_bundle(path, c1=KEYS["c1"])
    assert passes()
    path.write_text("c1: {")
    assert passes()
    path.unlink()
    assert passes()


def test_two_keys_of_a_node_count_while_one_replaces_the_other() -> None:
    bundle = TrustBundle({"c1": TrustEntry(public=[KEYS["stranger"].public, KEYS["c1"].public], role="candidate")})
    for by in ("c1", "stranger"):
        text = issue_token(KEYS[by], "c1", "c1", "mbatchd", EPOCH, NOW)[0]
        verify(text, bundle, subject="c1", audience="mbatchd", epoch=EPOCH, now=NOW)


def test_a_replaced_private_key_signs_from_then_on(tmp_path: Path) -> None:
    path, other = tmp_path / "a.key", tmp_path / "b.key"
    key, fresh = NodeKey.load_or_create(path), NodeKey.load_or_create(other)
    os.replace(other, path)
    text = sign_assertion(key, "n", "lim", NOW)
    assert key.public == fresh.public
    assert verify_assertion(text, TrustBundle.alone("n", fresh.public), audience="lim", now=NOW).node == "n"
    path.write_text("junk")
    sign_assertion(key, "n", "lim", NOW)
    assert key.public == fresh.public


def test_the_signature_covers_the_signers_name() -> None:
    header, purpose, body, _ = token("w1").split(".")
    renamed = base64.urlsafe_b64encode(b"c1").decode().rstrip("=")
    assert refusal(check, f"{header}.{purpose}.{body}.{renamed}") == "bad_token"
