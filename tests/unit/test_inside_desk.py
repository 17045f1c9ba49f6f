"""The agent's desk for programs inside logical hosts: who may ask, and who is answered."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.ask import _ask
from lavalite.sbatchd.entry import Entry
from lavalite.sbatchd.inside import InsideDesk
from lavalite.wire.connection import FrameServer
from lavalite.wire.frames import AnyFrame, HostAnswer, HostAsk

OWN, OTHER = 0, 4711


class Leader:
    """Answers each question with its own number, the last one first."""

    def __init__(self, *, there: bool = True) -> None:
        self.there, self.asked = there, list[HostAsk]()
        self.two = asyncio.Event()

    def tell(self, frame: AnyFrame) -> bool:
        assert isinstance(frame, HostAsk)
        self.asked.append(frame)
        if len(self.asked) == 2:
            self.two.set()
        return self.there


def desk(leader: Leader, **entries: Entry) -> InsideDesk:
    found = {name.replace("_", ".").removeprefix("a"): entry for name, entry in entries.items()}
    return InsideDesk("n1", found.get, leader.tell, OWN)


@pytest.mark.parametrize(
    ("ask", "uid", "code"),
    [
        (HostAsk(attempt="1.0.1"), OTHER, ""),
        (HostAsk(attempt="1.0.1"), 0, ""),  # root may
        (HostAsk(attempt="1.0.1"), OTHER + 1, "not_yours"),
        (HostAsk(attempt="1.0.1"), None, "not_yours"),
        (HostAsk(attempt="2.0.1"), OTHER, "not_yours"),  # it is over
        (HostAsk(attempt="3.0.1"), OTHER, "not_yours"),  # there is none
        (HostAsk(attempt="4.0.1"), OWN, ""),  # it runs as whom the agent runs as
        (HostAsk(attempt="4.0.1"), OTHER, "not_yours"),
        (HostAsk(host="a"), 0, ""),
        (HostAsk(host="a"), OTHER, "not_inside"),
        (HostAsk(), 0, "no_host"),
    ],
)
async def test_a_user_speaks_for_his_own_attempts_and_root_for_every_host(
    ask: HostAsk, uid: int | None, code: str
) -> None:
    leader = Leader()
    made = desk(leader, a1_0_1=Entry("1.0.1", OTHER), a2_0_1=Entry("2.0.1", OTHER, state="ended"),
                a4_0_1=Entry("4.0.1", -1))  # fmt: skip
    asking = asyncio.ensure_future(made._ask(ask, uid))
    await asyncio.sleep(0)
    if code:
        with pytest.raises(LavaLiteError) as refused:
            await asking
        assert (refused.value.code, leader.asked) == (code, [])
    else:
        made.answered(HostAnswer(seq=leader.asked[0].seq, host="a"))
        assert (await asking).host == "a"


async def test_each_gets_the_answer_to_his_own_question_over_the_socket(tmp_path: Path) -> None:
    leader = Leader()
    made = desk(leader)
    server = FrameServer(f"unix:{tmp_path}/s", made.greet, made.serve)
    await server.start()
    try:
        asking = [asyncio.ensure_future(_ask(f"{tmp_path}/s", HostAsk(host=name))) for name in ("a", "b")]
        async with asyncio.timeout(20):
            await leader.two.wait()
            for asked in reversed(leader.asked):
                made.answered(HostAnswer(seq=asked.seq, host=asked.host))
            made.answered(HostAnswer(seq=99, host="nobody asked"))
            assert [answer.host for answer in await asyncio.gather(*asking)] == ["a", "b"]
        leader.there = False
        with pytest.raises(LavaLiteError, match="nobody leads as yet"):
            await _ask(f"{tmp_path}/s", HostAsk(host="a"))
    finally:
        await server.close()
