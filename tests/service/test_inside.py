"""A program inside a logical host asks for more of it, and gives back: its job, its agent, the leader."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator

import pytest
from api_calls import NOBODY, as_user, open_folder, wait_for
from test_mbatchd import One
from whole import Whole

from lavalite.api.models import DefinitionPut
from lavalite.base.errors import LavaLiteError
from lavalite.model.job import Request
from lavalite.sbatchd.ask import ask

ASK = f"{sys.executable} -m lavalite.sbatchd.ask"
POOLS = """
cluster: test
pools:
  general: {nodes: '*', kinds: [cpu, memory], default: true}
logical_hosts:
  desk: {cpu: 0.5, memory: 64MiB, limits: {memory: 192MiB}}
  fixed: {cpu: 0.1, memory: 8MiB}
"""


@pytest.fixture(scope="module")
def one() -> Iterator[One]:
    with open_folder() as folder:
        store = {"kind": "sqlite", "path": str(folder / "store.db")}
        with Whole(folder, {"n1": 9}, store=store, lease_ttl_seconds=10).running() as cluster:
            (folder / "n1").chmod(0o755)
            found = One(cluster, asyncio.run(cluster.serving()))
            found.client.put_definition(DefinitionPut(text=POOLS))
            wait_for(lambda: [h.state for h in found.client.hosts()] == ["composed"] * 2, 20, "the hosts are there")
            yield found
            found.client.close()


def memory(one: One) -> int:
    return sum(part.amount for part in one.client.host("desk").parts if part.kind == "memory")


def said(one: One, script: str, **where: str) -> str:
    """All that a job's script wrote, once it has ended well."""
    job = one.submit("/bin/sh", "-c", f"exec 2>&1; {script}", request=Request(cpu_milli=50), **where)
    done = one.ended(job)
    text = b"".join(one.client.output(job)).decode()
    assert done.state == "succeeded", text
    return text


def test_a_job_grows_its_host_within_its_limits_and_gives_back(one: One) -> None:
    script = f"""
        {ASK} show; {ASK} grow --memory 192MiB
        {ASK} grow --memory 193MiB; echo exit $?
        {ASK} grow --memory 1MiB; echo exit $?
        {ASK} grow --cpu 2; echo exit $?
        {ASK} grow; echo exit $?
        {ASK} grow --memory much; echo exit $?
    """
    lines = said(one, script, host="desk").splitlines()
    assert lines[:3] == ["desk", "  cpu      0.5", "  memory   64MiB  (64MiB to 192MiB)"], lines
    assert lines[5] == "  memory   192MiB  (64MiB to 192MiB)", lines
    refused = "\n".join(lines[6:])
    assert "desk may have from 64MiB to 192MiB of memory, and 193MiB was asked for" in refused
    assert "desk may not grow in cpu. Write limits: {cpu: …} at logical_hosts in pools.yml." in refused
    assert [line for line in lines if line.startswith("exit")] == ["exit 1"] * 3 + ["exit 2"] * 2
    assert "Traceback" not in refused
    assert memory(one) == 192 << 20
    text = said(one, f"{sys.executable} -m lavalite.cli.main host grow --memory 64MiB", host="desk")
    assert "memory   64MiB  (64MiB to 192MiB)" in text
    assert memory(one) == 64 << 20


def test_what_there_is_no_room_for_is_refused_and_nothing_changes(one: One) -> None:
    before = POOLS.replace("192MiB", "100TiB")
    one.client.put_definition(DefinitionPut(text=before))
    text = said(one, f"{ASK} grow --memory 90TiB; echo exit $?", host="desk")
    assert "there is no room for that now. 1 node" in text and "exit 1" in text, text
    assert memory(one) == 64 << 20
    host = one.client.host("desk")
    assert (host.state, host.reason) == ("composed", "")
    one.client.put_definition(DefinitionPut(text=POOLS))


def test_outside_of_a_host_nothing_can_be_asked_for(one: One) -> None:
    text = said(one, f"LAVALITE_HOST= {ASK} grow --memory 1GiB; echo exit $?")
    assert text.splitlines() == ["HOST: this is inside no logical host. Name one, as root on its anchor.", "exit 2"]


def test_nobody_speaks_for_the_jobs_of_others(one: One) -> None:
    job = one.submit("sleep", "600", host="desk", request=Request(cpu_milli=50))
    one.reach(job, "running")
    state = one.cluster.agents["n1"].config["state_path"]
    inside = {"LAVALITE_AGENT_SOCKET": f"{state}/inside.sock"}
    theirs = inside | {"LAVALITE_HOST": "desk", "LAVALITE_ATTEMPT_ID": f"{job}.0.1"}

    def asked(environment: dict[str, str], host: str = "") -> tuple[int, str]:
        try:
            return 0, ask(host, {"memory": 128 << 20}, environment).host
        except LavaLiteError as error:
            return error.exit_code, str(error)

    not_yours = "this is no attempt of yours that runs here."
    assert asked(theirs | {"LAVALITE_ATTEMPT_ID": "999.0.1"}) == (1, not_yours)
    assert asked(theirs, "fixed")[1].startswith("HOST: this is inside desk, not fixed.")
    if os.geteuid() == 0:
        assert as_user(NOBODY, lambda: asked(theirs))[1] == not_yours
        assert "who asks is in no job" in as_user(NOBODY, lambda: asked(inside, "desk"))[1]
        assert asked(inside, "other") == (1, "other is no logical host of n1.")
        assert memory(one) == 64 << 20
        assert asked(inside, "desk") == (0, "desk"), "root on the anchor asks for any host there"
    assert asked(theirs) == (0, "desk")
    assert memory(one) == 128 << 20
    one.client.cancel(job)
    one.ended(job)
