"""playbooks/site.yml on five hosts of their own (tests/lab), with TLS: from nothing, and once more.

python bench/site.py [--json]

Three candidates, which keep etcd, and two workers: systemd, sshd and no way to the internet. Nothing is there at
first, the release on the controller included; what pip has in its cache may come from there. Needs root on Debian.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests"), str(ROOT / "tests/service")]

from figures import Figure, at_most, noted, report  # noqa: E402
from lab import Lab, why_not  # noqa: E402
from lab_site import CANDIDATES, WORKERS, Site  # noqa: E402

FROM_NOTHING_SECONDS = 240
AGAIN_SECONDS = 60


@dataclass(slots=True, frozen=True)
class Took:
    """Seconds by the wall clock, and of CPU on the controller; how many tasks changed something on some host."""

    wall: float
    cpu: float
    changed: int


def main() -> int:
    parser = argparse.ArgumentParser(description="playbooks/site.yml on five hosts, from nothing and once more.")
    parser.add_argument("--json", action="store_true", help="the last line is a list of the figures")
    asked = parser.parse_args()
    if reason := why_not():
        print(f"not measured: {reason}", file=sys.stderr)
        if asked.json:
            print(json.dumps([]))
        return 0
    with five_hosts() as site:
        figures = measured(site)
    return report(figures, as_json=asked.json)


@contextlib.contextmanager
def five_hosts() -> Iterator[Site]:
    """On which nothing is yet; with TLS, as VARIABLES of lab_site say."""
    with tempfile.TemporaryDirectory(prefix="lava-") as folder, Lab([*CANDIDATES, *WORKERS]) as lab:
        yield Site(lab, Path(folder), {"release_cache_path": str(Path(folder, "releases"))})


def measured(site: Site) -> list[Figure]:
    first = timed(site)
    assert first.changed, "nothing was there"
    again = timed(site)
    assert not again.changed, f"the second run changed {again.changed} times"
    return [
        at_most("site_seconds", first.wall, "s", FROM_NOTHING_SECONDS),
        noted("site_seconds, CPU of Ansible", first.cpu, "s"),
        at_most("site_again_seconds", again.wall, "s", AGAIN_SECONDS, f"from nothing: {first.wall:.1f} s"),
        noted("site_again_seconds, CPU of Ansible", again.cpu, "s"),
    ]


def timed(site: Site) -> Took:
    """One run, which must not fail."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    recap = site.play().rpartition("PLAY RECAP")[2]
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    changed = sum(map(int, re.findall(r"changed=(\d+)", recap)))
    return Took(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, changed)


if __name__ == "__main__":
    raise SystemExit(main())
