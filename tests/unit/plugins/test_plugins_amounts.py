"""Zero, less than that, and more than there can be: refused on every way in, and in the same words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.lavalite.cluster.plugins.module_utils._jobspec import spec_of
from pydantic import ValidationError

from lavalite.api.models import Submit, SubmitBatch
from lavalite.base.errors import InputError
from lavalite.cli.submit import make_request
from lavalite.mbatchd.http import _fault_of
from lavalite.model.job import JobSpec, Request
from lavalite.model.pools import load_pools

OPTIONS = {
    "cpu": "cpu_milli",
    "memory": "memory_bytes",
    "gpu": "gpu_milli",
    "gpu_memory": "gpu_memory_bytes",
    "storage": "storage_bytes",
    "network": "network_bits_per_second",
}
ENTRIES = {
    "memory": "memory: {}",
    "gpu": "gpu: {}",
    "gpu_memory": "gpu: {{count: 1, memory: {}}}",
    "storage": "storage: {}",
    "network": "network: {}",
}
UNITS = {"memory": "EiB", "gpu_memory": "EiB", "storage": "EiB", "network": "Pbit/s"}


def by_command(option: str, typed: str) -> str:
    with pytest.raises(InputError) as refused:
        make_request({option: typed}, "", [], [])
    return refused.value.fault.sentence()


def by_module(option: str, typed: str) -> str:
    with pytest.raises(ValueError) as refused:
        spec_of({"name": "n", "command": ["true"], option: typed})
    return str(refused.value)


def by_pools(option: str, typed: str) -> str:
    entry = ENTRIES[option].format(typed)
    text = (
        f"plugin: lavalite.cluster.pools\ncluster: c\napi: [http://h:1]\nlogical_hosts:\n  a: {{cpu: 1, {entry}}}\n"
    )
    with pytest.raises(InputError) as refused:
        load_pools(text)
    return refused.value.fault.sentence()


def by_api(request: dict[str, Any]) -> list[tuple[str, str, str]]:
    body = json.dumps({"jobs": [{"spec": {"command": ["true"], "request": request}}]})
    with pytest.raises(ValidationError) as refused:
        SubmitBatch.model_validate_json(body)
    faults = [_fault_of(found) for found in refused.value.errors()]
    return [(fault.code, fault.field, fault.message) for fault in faults]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    ("number", "said", "code"),
    [("0", "is nothing to ask for", "zero_amount"), ("-1", "is negative", "negative_amount"),
     ("9223372036854775808", "is too large", "out_of_range")],
)  # fmt: skip
def test_every_way_in_says_the_same(option: str, number: str, said: str, code: str) -> None:
    typed = number + ("" if number == "0" else UNITS.get(option, ""))
    assert f"--{option.replace('_', '-')}: {typed} {said}" in by_command(option, typed)
    assert f"{option}: {typed} {said}" in by_module(option, typed)
    if option in ENTRIES:
        assert f"{typed} {said}" in by_pools(option, typed)
    field = OPTIONS[option]
    assert by_api({field: int(number)}) == [(code, f"jobs.0.spec.request.{field}", f"{number} {said}")]


@pytest.mark.parametrize(("number", "said"), [(0, "nothing to ask for"), (-1, "negative"), (2**63, "too large")])
def test_what_floats_too(number: int, said: str) -> None:
    with pytest.raises(InputError, match=f"--floating matlab: {number} is {said}"):
        make_request({}, "", [f"matlab={number}"], [])
    with pytest.raises(ValueError, match=rf"floating\.matlab: {number} is {said}"):
        spec_of({"name": "n", "command": ["true"], "floating": {"matlab": number}})
    assert by_api({"floating": {"matlab": number}})[0][2].endswith(said)


def test_all_that_is_wrong_is_said_at_once() -> None:
    assert len(by_api({"cpu_milli": 0, "memory_bytes": -1, "gpu_milli": 2**64, "floating": {"a": 10**400}})) == 4


def test_a_number_that_is_none_is_said_to_be_none() -> None:
    with pytest.raises(ValueError, match=r"matlab: many is not understood\. Write a whole number"):
        spec_of({"name": "n", "command": ["true"], "floating": {"matlab": "many"}})


def test_what_was_not_said_is_not_sent_and_what_is_stored_may_be_nothing() -> None:
    ask = Submit(spec=JobSpec(command=["true"], request=Request(memory_bytes=1)))
    sent = SubmitBatch(jobs=[ask.model_copy(update={"key": "k"})]).model_dump(mode="json", exclude_unset=True)
    assert sent == {"jobs": [{"spec": {"command": ["true"], "request": {"memory_bytes": 1}}, "key": "k"}]}
    assert SubmitBatch.model_validate(sent).jobs[0].spec.request.memory_bytes == 1
    assert JobSpec.model_validate({"command": ["true"], "request": {"cpu_milli": 0}}).request.cpu_milli == 0
