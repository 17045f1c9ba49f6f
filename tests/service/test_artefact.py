"""meta, plugins, roles and playbooks are the collection: with nothing beside them it plans and plays as before.

What publishing adds or leaves out is `make lint`'s to look at, which builds the real artefact.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ansible")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """An inventory, and as the only collection the four folders of ours."""
    made = Path(tempfile.mkdtemp(prefix="lava-"))  # short, for sockets' sake
    collection = made / "collections/ansible_collections/lavalite/cluster"
    for part in ("meta", "plugins", "roles", "playbooks"):
        shutil.copytree(ROOT / part, collection / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "inventories/local", made / "inventories/local")
    yield made
    shutil.rmtree(made)


def run(folder: Path, program: str, *arguments: str) -> str:
    """What a program of Ansible prints, far away from the checkout and its ansible.cfg."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LAVALITE_", "ANSIBLE_"))} | {
        "ANSIBLE_COLLECTIONS_PATH": str(folder / "collections"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",
        "ANSIBLE_INVENTORY_ENABLED": "lavalite.cluster.pools,ansible.builtin.yaml",
        "ANSIBLE_NOCOLOR": "1",
    }
    command = [str(BIN / program), "-i", "inventories/local", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_four_folders_plan_and_play(folder: Path) -> None:
    assert "@lavalite_pool_general:" in run(folder, "ansible-inventory", "--graph")
    played = run(folder, "ansible-playbook", "lavalite.cluster.site", "--check")
    assert "failed=0" in played
    assert not (folder / ".lavalite/local/lim").exists()
