"""The network between nodes: links by name, how near nodes are, and circuits that are admitted on every link."""

from __future__ import annotations

from lavalite.model.host import Circuit, HostState, LogicalHost, Part
from lavalite.model.selector import Selector
from lavalite.model.specs import LinkSpec, NodeCapacity
from lavalite.placement.fabric import ENDLESS, Fabric, Full, Nearness, Way, link_accounts, with_cards
from lavalite.placement.shares import shares_of

GBIT = 10**9


def node(name: str, rack: str = "", network: int = 25 * GBIT) -> NodeCapacity:
    return NodeCapacity(name, {"rack": [rack]} if rack else {}, {"network": network} if network else {})


def of_rack(rack: str, bandwidth: int = 25 * GBIT, to: str = "") -> LinkSpec:
    return LinkSpec(to or rack, bandwidth, Selector.parse({"rack": rack}))


def up(switch: str, to: str, bandwidth: int = 100 * GBIT) -> LinkSpec:
    return LinkSpec(to, bandwidth, switch=switch)


NODES = [node("n1", "r1"), node("n2", "r1"), node("n3", "r2"), node("n4")]
LINKS = [of_rack("r1"), of_rack("r2"), up("r1", "core"), up("r2", "core", 40 * GBIT)]


def take(fabric: Fabric, way: Way | Full | None, bandwidth: int) -> None:
    assert isinstance(way, Way)
    for link in way.links:
        fabric.move(link, bandwidth, -1)


def test_every_link_is_an_account() -> None:
    assert link_accounts(LINKS, NODES) == {
        "link/n1/r1": 25 * GBIT,
        "link/n2/r1": 25 * GBIT,
        "link/n3/r2": 25 * GBIT,
        "link/r1/core": 100 * GBIT,
        "link/r2/core": 40 * GBIT,
    }
    assert link_accounts([], NODES) == {}


def test_of_several_links_to_one_switch_the_widest_counts() -> None:
    links = [of_rack("r1", 10 * GBIT), LinkSpec("r1", 50 * GBIT, Selector.parse("n2"))]
    assert link_accounts(links, NODES) == {"link/n1/r1": 10 * GBIT, "link/n2/r1": 50 * GBIT}


def test_a_card_that_is_not_known_is_as_wide_as_the_link() -> None:
    silent = node("n5", "r1", network=0)
    assert with_cards([silent, *NODES], LINKS)[0].amounts == {"network": 25 * GBIT}
    assert with_cards([node("n6", network=0)], LINKS)[0].amounts == {}


def test_how_near_two_nodes_are() -> None:
    fabric = Fabric.between(NODES, LINKS)
    assert [fabric.nearness(0, at) for at in range(4)] == [
        Nearness.NODE,
        Nearness.RACK,
        Nearness.APART,
        Nearness.APART,
    ]
    assert fabric.hops(0).tolist() == [2, 2, 4, ENDLESS]
    one_switch = Fabric.between([node("a"), node("b")], [LinkSpec("s", GBIT, Selector.parse("*"))])
    assert one_switch.nearness(0, 1) is Nearness.RACK  # by the switch alone
    flat = Fabric.between(NODES, [])
    assert (flat.nearness(0, 1), flat.nearness(0, 2)) == (Nearness.RACK, Nearness.APART)
    assert flat.way(0, 3, 25 * GBIT) == Way(())


def test_a_way_goes_up_to_a_common_switch_and_no_further() -> None:
    fabric = Fabric.between(NODES, LINKS)
    assert fabric.way(0, 1, GBIT) == Way(("link/n1/r1", "link/n2/r1"))
    assert fabric.way(0, 2, GBIT) == Way(("link/n1/r1", "link/r1/core", "link/r2/core", "link/n3/r2"))
    assert fabric.way(0, 3, GBIT) is None  # no link leads from n4


def test_a_full_link_is_named_with_what_it_has_free() -> None:
    fabric = Fabric.between(NODES, LINKS)
    fabric.move("link/r2/core", 30 * GBIT, -1)
    assert fabric.way(0, 2, 10 * GBIT) == Way(("link/n1/r1", "link/r1/core", "link/r2/core", "link/n3/r2"))
    assert fabric.way(0, 2, 20 * GBIT) == Full("link/r2/core", 10 * GBIT, inner=True, beyond=True)
    assert not fabric.open_to(0, 20 * GBIT)[2] and fabric.open_to(0, 10 * GBIT)[2]
    fabric.move("link/r2/core", 30 * GBIT, +1)
    assert isinstance(fabric.way(0, 2, 20 * GBIT), Way)  # nothing is remembered of before
    fabric.cards[2] = GBIT
    assert fabric.way(0, 2, 2 * GBIT) == Full("n3", GBIT, beyond=True)
    assert fabric.way(2, 0, 2 * GBIT) == Full("n3", GBIT)


def test_of_several_ways_the_shortest_then_the_freest_then_the_first_by_name() -> None:
    links = [of_rack("r1"), of_rack("r2"), up("r1", "a"), up("r1", "b"), up("r2", "a"), up("r2", "b")]
    links += [up("a", "top"), up("b", "top")]
    fabric = Fabric.between(NODES, links)
    a = Way(("link/n1/r1", "link/r1/a", "link/r2/a", "link/n3/r2"))
    assert fabric.way(0, 2, 5 * GBIT) == a
    fabric.move("link/r1/a", 80 * GBIT, -1)  # 20 free, less than the 25 of the nodes' links
    b = Way(("link/n1/r1", "link/r1/b", "link/r2/b", "link/n3/r2"))
    assert fabric.way(0, 2, 5 * GBIT) == b
    fabric.move("link/r2/b", 98 * GBIT, -1)
    assert fabric.way(0, 2, 5 * GBIT) == a
    fabric.move("link/r1/a", 18 * GBIT, -1)  # neither is left: up b, over top, and down a
    over = ("link/n1/r1", "link/r1/b", "link/b/top", "link/a/top", "link/r2/a", "link/n3/r2")
    assert fabric.way(0, 2, 5 * GBIT) == Way(over)


def test_nodes_with_two_uplinks_use_either() -> None:
    links = [of_rack("r1", GBIT, to="s1"), of_rack("r1", 2 * GBIT, to="s2")]
    fabric = Fabric.between(NODES, links)
    assert fabric.way(0, 1, GBIT) == Way(("link/n1/s2", "link/n2/s2"))
    take(fabric, fabric.way(0, 1, 2 * GBIT), 2 * GBIT)
    assert fabric.way(0, 1, GBIT) == Way(("link/n1/s1", "link/n2/s1"))
    assert fabric.ends.tolist()[:2] == [GBIT, GBIT]


def test_a_node_at_a_spine_is_reached_from_below() -> None:
    """The spine has no link upwards, and needs none."""
    links = [of_rack("r1"), up("r1", "spine"), LinkSpec("spine", 10 * GBIT, Selector.parse("n4"))]
    fabric = Fabric.between(NODES, links)
    assert fabric.open_to(3, GBIT).tolist() == [True, True, False, True]
    assert fabric.way(3, 0, GBIT) == Way(("link/n4/spine", "link/r1/spine", "link/n1/r1"))
    assert fabric.hops(3).tolist() == [3, 3, ENDLESS, 2]


def test_what_a_host_holds_of_cards_and_links() -> None:
    host = LogicalHost(
        name="a",
        state=HostState.COMPOSED,
        anchor="n1",
        parts=[
            Part(id="a/cpu/n1", kind="cpu", amount=4000, provider="n1", pool="p", devices=["c0"]),
            Part(id="a/storage/n3", kind="storage", amount=7, provider="n3", circuit="a/c"),
        ],
        circuits=[
            Circuit(id="a/c", anchor="n1", provider="n3", bits_per_second=5, links=["link/n1/r1", "link/x/y"]),
        ],
    )
    assert [(s.provider, s.kind, s.amount, s.devices, s.pool) for s in shares_of(host)] == [
        ("n1", "cpu", 4000, ["c0"], "p"),
        ("n3", "storage", 7, [], ""),
        ("n1", "network", 5, [], ""),
        ("n3", "network", 5, [], ""),
        ("link/n1/r1", "network", 5, [], ""),
        ("link/x/y", "network", 5, [], ""),
    ]
