"""What a backup is: whole, with a manifest that fits it, for its owner alone; and nothing was stopped for it."""

import hashlib
import json
import os
from pathlib import Path

from testinfra.host import Host

BACKUPS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "backups")


def mode(path: Path) -> str:
    return f"{path.stat().st_mode & 0o777:o}"


def test_there_is_one_for_its_owner_alone() -> None:
    (folder,) = BACKUPS.iterdir()
    assert folder.name.startswith("lab-") and mode(folder) == "700"
    assert {file.name: mode(file) for file in folder.iterdir()} == {"manifest.json": "600", "store.db": "600"}


def test_its_manifest_fits_it() -> None:
    (folder,) = BACKUPS.iterdir()
    said, store = json.loads((folder / "manifest.json").read_text()), (folder / "store.db").read_bytes()
    assert said["sha256"] == hashlib.sha256(store).hexdigest() and int(said["size_bytes"]) == len(store)
    assert (said["cluster"], said["kind"], said["saved_on"]) == ("lab", "sqlite", "ctl1")
    assert (said["generation"], said["found"]["jobs"]) == (0, 0) and said["revision"] > 0


def test_nothing_was_stopped_for_it(host: Host) -> None:
    for unit in ("lavalite-lim.service", "lavalite-mbatchd.service"):
        assert host.service(unit).is_running
    assert host.check_output("journalctl -q -o cat -u lavalite-lim").count('"this LIM leads"') == 1


def test_nothing_of_it_stays_on_the_host(host: Host) -> None:
    assert host.check_output("find /tmp /root /var/tmp -name '*.lavalite' -o -name 'store.db*'") == ""
