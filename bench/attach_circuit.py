"""What a circuit keeps while others send: a part of bench/attach.py.

                    card: HTB of circuits, 1 Gbit/s          port: token bucket, 1 Gbit/s
    the host's disk  ─────────────────────────┐
    the same sender's flood  ─────────────────┴── switch ──────────────────────────────── anchor
    a third sender's flood  ───────────────────────┘

A circuit is shaped where it leaves a card. Against a third sender, who meets it at the consumer's port of the switch,
LavaLite has nothing; what could be done there is measured beside it, set up by hand.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from composed_site import ANCHOR, DISK
from figures import Figure, at_least, noted
from lab import Lab

KEPT_PERCENT = 95
THIRD = "third"
LINE_MBITS, CIRCUIT_MBITS = 1000, 200
LEFT_MBITS = LINE_MBITS - CIRCUIT_MBITS
PLAIN_PORT, FLOOD_PORT = 11900, 5001
LEAD_SECONDS, MORE_SECONDS, TRIES = 4.0, 2.0, 5
"""For what has to start on the hosts before a measurement."""
TRAFFIC = (Path(__file__).parent / "traffic.py").read_text()


def circuit_figures(lab: Lab, rounds: int, seconds: float) -> list[Figure]:
    """Of a host that is composed, with a disk of DISK behind a circuit."""
    # Its own nbdkit, that no circuit knows of.
    plain = f"nbdkit --foreground --ipaddr {lab.address(DISK)} --port {PLAIN_PORT} memory size=1G"
    lab.run(DISK, f"systemd-run --quiet --unit=plain {plain}")
    port = int(lab.run(DISK, "ss -Hltn | grep -o ':109[0-9][0-9]' | tr -d :").stdout)
    bench = _Bench(lab, seconds, LEAD_SECONDS)
    with bench.switch_port(PORT):
        alone, _ = bench.median([], port, rounds)
        found = [noted("circuit_mbits_alone", alone, "Mbit", "nobody else sends")]
        kept = []
        for kind in ("tcp", "udp"):
            rate, flood = bench.median([(DISK, kind)], port, rounds)
            kept.append(100 * rate / CIRCUIT_MBITS)
            words = f"beside {flood:.0f} Mbit/s of {kind.upper()}"
            found.append(noted(f"circuit_mbits_same_sender_{kind}", rate, "Mbit", words))
        words = f"the least of both; a circuit of {CIRCUIT_MBITS} Mbit/s"
        found.append(at_least("circuit_kept_percent", min(kept), "%", KEPT_PERCENT, words))
        rate, flood = bench.median([(DISK, "tcp")], PLAIN_PORT, rounds)
        words = f"without a circuit, beside {flood:.0f} Mbit/s of TCP"
        found.append(noted("no_circuit_mbits_same_sender_tcp", rate, "Mbit", words))
    for name, words, set_up in REMEDIES:
        with set_up(bench):
            for kind in ("tcp", "udp"):
                rate, flood = bench.median([(THIRD, kind)], port, max(1, rounds // 2))
                about = f"{words}; {flood:.0f} Mbit/s of {kind.upper()}"
                found.append(noted(f"circuit_mbits_third_{kind}_{name}", rate, "Mbit", about))
    return found


@dataclass(slots=True)
class _Bench:
    lab: Lab
    seconds: float
    lead: float

    def median(self, floods: list[tuple[str, str]], port: int, rounds: int) -> tuple[float, float]:
        """Mbit/s, of what is read from that port, and of what those floods send (host, kind)."""
        trials = [self._trial(floods, port) for _ in range(rounds)]
        return statistics.median(each[0] for each in trials), statistics.median(each[1] for each in trials)

    def _trial(self, floods: list[tuple[str, str]], port: int) -> tuple[float, float]:
        to, of = self.lab.address(ANCHOR), self.lab.address(DISK)
        for _ in range(TRIES):
            begin = time.monotonic() + self.lead
            end = begin + self.seconds
            with ThreadPoolExecutor() as pool:
                pool.submit(self._traffic, ANCHOR, "sink", FLOOD_PORT, end + 0.5)
                sent = [
                    pool.submit(self._traffic, node, "flood", to, FLOOD_PORT, begin, end, kind)
                    for node, kind in floods
                ]
                said = [self._traffic(ANCHOR, "read", of, port, begin, end), *(each.result() for each in sent)]
            if "late" not in said:
                rates = [float(each) / 1e6 for each in said]
                return rates[0], sum(rates[1:])
            self.lead += MORE_SECONDS
        raise SystemExit("not measured: this machine is too busy, nothing starts in its time")

    def _traffic(self, node: str, *words: object) -> str:
        line = " ".join(map(str, ("python3", "-", *words)))
        done = self.lab.run(node, line, check=False, stdin=TRAFFIC, timeout_seconds=200)
        return (done.stdout.strip() or done.stderr.strip())[-400:]

    # --- what stands in the way, and what might help

    @contextlib.contextmanager
    def switch_port(self, lines: str) -> Iterator[None]:
        """Of the anchor, with this discipline."""
        card = f"vb-h{self.lab.hosts[ANCHOR].number}"
        lines = lines.replace("CARD", card).replace("SENDER", self.lab.address(DISK))
        self.lab.here(["sh", "-ec", lines])
        try:
            yield
        finally:
            self.lab.here(["tc", "qdisc", "del", "dev", card, "root"])

    @contextlib.contextmanager
    def on(self, node: str, lay: str, take_up: str) -> Iterator[None]:
        """These lines on that host, behind the usual port."""
        with self.switch_port(PORT):
            self.lab.run(node, lay.replace("SENDER", self.lab.address(DISK)))
            try:
                yield
            finally:
                self.lab.run(node, take_up)


PORT = f"tc qdisc add dev CARD root tbf rate {LINE_MBITS}mbit burst 256kb limit 1mb"
CLASSED_PORT = f"""
tc qdisc add dev CARD root handle 1: htb default 20
tc class add dev CARD parent 1: classid 1:1 htb rate {LINE_MBITS}mbit burst 256kb cburst 256kb
tc class add dev CARD parent 1:1 classid 1:10 htb rate {CIRCUIT_MBITS}mbit ceil {LINE_MBITS}mbit burst 128kb prio 0
tc class add dev CARD parent 1:1 classid 1:20 htb rate {LEFT_MBITS}mbit ceil {LINE_MBITS}mbit burst 128kb prio 1
tc qdisc add dev CARD parent 1:10 pfifo limit 700
tc qdisc add dev CARD parent 1:20 pfifo limit 700
tc filter add dev CARD parent 1: protocol ip u32 match ip src SENDER/32 flowid 1:10
"""
POLICED = f"""
nft -f - << 'END'
table inet bench {{
    chain input {{
        type filter hook input priority -10;
        ip saddr != SENDER limit rate over {LEFT_MBITS // 8} mbytes/second burst 256 kbytes drop
    }}
}}
END
"""
SHAPED = f"tc qdisc add dev host0 root tbf rate {LEFT_MBITS}mbit burst 128kb limit 1mb"
REMEDIES: list[tuple[str, str, Callable[[_Bench], contextlib.AbstractContextManager[None]]]] = [
    ("as_it_is", "nothing is done", lambda bench: bench.switch_port(PORT)),
    (
        "policed",
        f"the consumer drops others' beyond {LEFT_MBITS} Mbit/s",
        lambda bench: bench.on(ANCHOR, POLICED, "nft delete table inet bench"),
    ),
    (
        "shaped",
        f"{LEFT_MBITS} Mbit/s for all on the third sender's card",
        lambda bench: bench.on(THIRD, SHAPED, "tc qdisc del dev host0 root"),
    ),
    ("classed", "a class of its own at the switch's port", lambda bench: bench.switch_port(CLASSED_PORT)),
]
