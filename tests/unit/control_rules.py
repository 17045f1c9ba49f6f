"""What happens to any cluster, as rules for stateful tests of control: each of those adds its own, and its laws."""

from __future__ import annotations

from typing import Any

from control_world import World
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule


class ClusterRules(RuleBasedStateMachine):
    """Writes that go through or do not, reports, ends, and time. `world` is made by who says what there is."""

    world: World

    @rule(n=st.integers(1, 5), unwind=st.sampled_from([False, False, False, True]))
    def write(self, n: int, unwind: bool) -> None:
        for _ in range(n):
            self.world.write(unwind=unwind)

    @rule()
    def catch_up(self) -> None:
        """All writes go through and all reports are told."""
        self.world.settle()
        for name in self.world.agents:
            self.world.report(name)
        self.world.settle()

    @rule(pick=st.randoms(use_true_random=False), code=st.sampled_from([0, 0, 1, -11]))
    def finish(self, pick: Any, code: int) -> None:
        if running := self.world.running():
            self.world.finish(pick.choice(sorted(running)), code)

    @rule(seconds=st.sampled_from([1, 3, 5, 30, 40, 70, 120]))
    def advance(self, seconds: int) -> None:
        self.world.advance(seconds)
