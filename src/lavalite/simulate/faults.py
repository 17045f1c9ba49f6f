"""What goes wrong in a scenario, and when it is over. Each tells the story what it is before anybody notices."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from lavalite.control.events import DrainRequested, ResumeRequested
from lavalite.simulate.agents import SimulatedAgent
from lavalite.simulate.cluster import SimulatedCluster
from lavalite.simulate.draws import source_of
from lavalite.simulate.entries import FaultEntry, SettingsEntry
from lavalite.simulate.scenario import ANY, Scenario

Tell = Callable[[float, str], None]


class Faults:
    """Lets the scenario's faults come about. `pending`: how many are yet to come, or to be over, of those that come
    once."""

    def __init__(self, scenario: Scenario, cluster: SimulatedCluster, tell: Tell) -> None:
        self._cluster, self._tell = cluster, tell
        self._settings: SettingsEntry = scenario.top.settings
        self._losing: dict[int, tuple[float, random.Random]] = {}
        self._outages = 0
        self.pending = 0
        for at, fault in enumerate(scenario.faults):
            source = source_of(scenario.top.seed, "fault", at)
            if fault.at is not None:
                self.pending += 1
                cluster.at(fault.at, self._happen, at, fault, source)
            elif fault.every is not None:
                cluster.at(fault.every.seconds(source), self._happen, at, fault, source)

    def _happen(self, at: int, fault: FaultEntry, source: random.Random) -> None:
        once = fault.every is None
        if fault.every is not None:
            self._cluster.after(fault.every.seconds(source), self._happen, at, fault, source)
        over = self._begin(at, fault, source)
        if over is not None and fault.lasts is not None:
            self._cluster.after(fault.lasts, self._end, over, once)
        else:
            self.pending -= once

    def _end(self, over: Callable[[], None], once: bool) -> None:
        over()
        self.pending -= once

    def _begin(self, at: int, fault: FaultEntry, source: random.Random) -> Callable[[], None] | None:
        """Let it begin; what ends it."""
        cluster = self._cluster
        match fault.kind:
            case "lose_leader":
                self._tell(cluster.now, "the leader dies")
                cluster.lose_leader(float(fault.lasts or self._settings.takeover))
                return None
            case "store_outage":
                return self._store_outage()
            case "lose_messages":
                self._tell(cluster.now, f"{fault.lose_messages / 10:g} % of all messages are lost from now on")
                self._losing[at] = (fault.lose_messages / 1000, source)
                cluster.loses_message = self._is_lost
                return partial(self._lose_no_more, at)
        agents = [agent for name in fault.nodes() if (agent := self._agent(name, source)) is not None]
        return partial(_all, [self._of_node(fault, agent) for agent in agents])

    def _agent(self, name: str, source: random.Random) -> SimulatedAgent | None:
        known = self._cluster.agents
        if name != ANY:
            return known.get(name)
        return known[source.choice(sorted(known))] if known else None

    def _of_node(self, fault: FaultEntry, agent: SimulatedAgent) -> Callable[[], None]:
        cluster, name = self._cluster, agent.name
        match fault.kind:
            case "stop_beats":
                self._tell(cluster.now, f"{name} stops beating")
                cluster.cut_off(agent)
                return partial(self._mend, agent, "beats again")
            case "partition":
                self._tell(cluster.now, f"{name} is cut off")
                cluster.cut_off(agent)
                return partial(self._mend, agent, "is reached again")
            case "crash":
                self._tell(cluster.now, f"{name} crashes")
                cluster.cut_off(agent)
                agent.reboot(cluster.now)
                return partial(self._mend, agent, "has started again")
            case "slow":
                self._tell(cluster.now, f"{name} is {fault.factor} times as slow")
                cluster.slow_down(agent, float(fault.factor))
                return partial(self._speed_up, agent)
        self._tell(cluster.now, f"{name} is to be drained")
        cluster.feed(DrainRequested(name, "scenario"))
        return partial(self._undrain, agent)

    def _mend(self, agent: SimulatedAgent, what: str) -> None:
        self._tell(self._cluster.now, f"{agent.name} {what}")
        self._cluster.mend(agent)

    def _speed_up(self, agent: SimulatedAgent) -> None:
        self._tell(self._cluster.now, f"{agent.name} is as fast as before")
        self._cluster.slow_down(agent, 1.0)

    def _undrain(self, agent: SimulatedAgent) -> None:
        self._tell(self._cluster.now, f"{agent.name} takes work again")
        self._cluster.feed(ResumeRequested(agent.name))

    def _store_outage(self) -> Callable[[], None]:
        """A leader that cannot renew its lease is none any more."""
        self._tell(self._cluster.now, "the store does not answer")
        self._outages += 1
        self._cluster.set_store(False)
        self._cluster.after(self._settings.lease, self._without_store, self._outages)
        return self._store_back

    def _without_store(self, outage: int) -> None:
        if not self._cluster.store_up and outage == self._outages:
            self._cluster.lose_leader(self._settings.takeover)

    def _store_back(self) -> None:
        self._tell(self._cluster.now, "the store answers again")
        self._outages += 1
        self._cluster.set_store(True)

    def _is_lost(self) -> bool:
        return any(source.random() < share for share, source in self._losing.values())

    def _lose_no_more(self, at: int) -> None:
        self._tell(self._cluster.now, "no message is lost any more")
        del self._losing[at]


def _all(ends: list[Callable[[], None]]) -> None:
    for end in ends:
        end()
