"""What a restore leaves: what was committed then, in a new generation, and what was there beside it."""

import json
import os
from pathlib import Path

from testinfra.host import Host

BACKUPS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "backups")


def test_what_was_saved_is_there_and_what_came_later_is_not(host: Host) -> None:
    queues = host.check_output("/opt/lavalite/current/bin/lavalite queues")
    assert "saved" in queues and "later" not in queues


def test_its_generation_is_a_new_one(host: Host) -> None:
    (manifest,) = BACKUPS.glob("*/manifest.json")
    before = json.loads(manifest.read_text())["generation"]
    status = json.loads(host.check_output("/opt/lavalite/current/bin/lavalite status --output json"))
    assert status["epoch"][0] > before


def test_its_daemons_run_as_before(host: Host) -> None:
    for unit in ("lavalite-lim.service", "lavalite-mbatchd.service"):
        assert host.service(unit).is_running
    assert host.service("lavalite-lim.service").is_enabled


def test_what_was_there_is_kept_and_guarded(host: Host) -> None:
    kept = host.check_output("find /var/lib/lavalite/lim -name '*.before-restore*' -type f").split()
    assert kept
    for path in kept:
        assert host.file(path).user == "lavalite" and host.file(path).mode & 0o077 == 0


def test_nothing_of_it_stays_on_the_host(host: Host) -> None:
    assert host.check_output("find /tmp /root /var/tmp -name '*.lavalite' -o -name 'store.db*'") == ""
