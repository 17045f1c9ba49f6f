"""For whom a job counts: the user's own group, or one of theirs that the job names."""

from __future__ import annotations

import grp
import os

import pytest

from lavalite.base.errors import Fault
from lavalite.mbatchd.groups import REMEMBERED_SECONDS, Groups, chosen
from lavalite.mbatchd.identity import Identity

ADA = Identity("ada", 1001, 1001, operator=False)
MINE = ("ada", "research")


def test_the_own_group_where_none_is_named_or_another_one_of_theirs() -> None:
    assert chosen("", MINE, ADA) == "ada"
    assert chosen("research", MINE, ADA) == "research"


def test_nobody_takes_what_is_another_groups() -> None:
    refused = chosen("teaching", MINE, ADA)
    assert isinstance(refused, Fault)
    assert refused.sentence() == "group: ada is not in group teaching. Name one of ada, research, or none."
    assert chosen("teaching", MINE, Identity("root", 0, 0, operator=True)) == "teaching"


async def test_groups_are_those_of_this_machine_and_remembered_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    groups = Groups(lambda: now[0])
    me = Identity("root", 0, 0, operator=True)
    assert (await groups.of(me))[0] == grp.getgrgid(0).gr_name
    assert await groups.of(Identity("no-such-user", 4_000_001, 4_000_001, operator=False)) == ("4000001",)
    monkeypatch.setattr(os, "getgrouplist", lambda user, gid: [gid, 4_000_002])
    assert "4000002" not in await groups.of(me)
    now[0] += REMEMBERED_SECONDS
    assert (await groups.of(me))[1:] == ("4000002",)
