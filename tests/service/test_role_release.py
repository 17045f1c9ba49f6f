"""Role release on two nodes that are folders of this machine: which of their releases they go to, and which not."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLLECTIONS = ROOT / ".ansible/collections"
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
SUFFIX = f"node-py{sys.version_info.major}{sys.version_info.minor}"
PLAY = [
    {
        "hosts": "all",
        "gather_facts": False,
        "any_errors_fatal": True,
        "tasks": [
            {"ansible.builtin.include_role": {"name": "lavalite.cluster.release", "tasks_from": verb}}
            for verb in ("preflight", "install", "speaks", "switch")
        ],
    }
]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ansible")]


class Nodes:
    """Two nodes, a and b, with releases of nothing but their description."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        hosts = {
            name: {
                "ansible_connection": "local",
                "release_root": str(folder / name),
                "release_python": sys.executable,
            }
            for name in ("a", "b")
        }
        shared = {"ansible_python_interpreter": sys.executable, "ansible_remote_tmp": str(folder / "tmp")}
        (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": shared}}))
        (folder / "play.yml").write_text(json.dumps(PLAY))

    def give(self, node: str, number: int, *, protocol: tuple[int, int] = (1, 1), files: int = 0) -> None:
        name = f"0.{number}.0+0123abcd-{SUFFIX}"
        made = self.folder / node / "releases" / name
        made.mkdir(parents=True)
        facts = {"name": name, "version": f"0.{number}.0+0123abcd", "part": "node", "machine": platform.machine()}
        minor = f"{sys.version_info.major}.{sys.version_info.minor}"
        counted = {"python": minor, "protocol": protocol, "files": files, "bytes": 0}
        (made / "release.json").write_text(json.dumps(facts | counted))

    def link(self, node: str, link: str, number: int) -> None:
        (self.folder / node / link).symlink_to(f"releases/0.{number}.0+0123abcd-{SUFFIX}")

    def links(self) -> list[str]:
        return [
            os.readlink(self.folder / node / link).split("/")[1].split("+")[0]
            for node in ("a", "b")
            for link in ("current", "previous")
        ]

    def go_to(self, wanted: str, *flags: str) -> subprocess.CompletedProcess[str]:
        kept: dict[str, Any] = {k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")}
        return subprocess.run(
            [PLAYBOOK, "-i", "hosts.json", "play.yml", "-e", f"lavalite_release={wanted}", *flags],
            cwd=self.folder,
            env=kept
            | {
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                "ANSIBLE_HOME": str(self.folder / "home"),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_LOCALHOST_WARNING": "false",
            },
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    made = Nodes(tmp_path)
    for node in ("a", "b"):
        for number in (1, 2, 3):
            made.give(node, number)
        made.link(node, "current", 3)
        made.link(node, "previous", 2)
    return made


def test_back_and_to_one_that_is_named(nodes: Nodes) -> None:
    checked = nodes.go_to("previous", "--check")
    assert (checked.returncode, nodes.links()) == (0, ["0.3.0", "0.2.0"] * 2), checked.stdout
    done = nodes.go_to("previous")
    assert (done.returncode, nodes.links()) == (0, ["0.2.0", "0.3.0"] * 2), done.stdout
    assert "changed=1" in checked.stdout and "changed=1" in done.stdout
    assert nodes.go_to("0.1.0+0123abcd").returncode == 0
    assert nodes.links() == ["0.1.0", "0.2.0"] * 2
    assert "changed=0" in nodes.go_to("0.1.0+0123abcd").stdout


def test_what_nodes_mean_differently_is_to_be_named(nodes: Nodes) -> None:
    (nodes.folder / "b/current").unlink()
    nodes.link("b", "current", 1)
    done = nodes.go_to("previous")
    assert done.returncode != 0
    assert (
        "release_wanted: the nodes use 0.3.0+0123abcd and 0.1.0+0123abcd, and the release before is 0.2.0+0123abcd. "
        "Name the one that all are to use, such as -e lavalite_release=0.3.0+0123abcd." in done.stdout
    )
    assert nodes.links() == ["0.3.0", "0.2.0", "0.1.0", "0.2.0"]


def test_one_that_a_node_does_not_have_whole_is_not_used_on_any(nodes: Nodes) -> None:
    nodes.give("a", 4)
    nodes.give("b", 4, files=7)
    done = nodes.go_to("0.4.0+0123abcd")
    assert done.returncode != 0
    assert "b does not have 0.4.0+0123abcd, or not all of it. It has 0.1.0+0123abcd, 0.2.0+0123abcd" in done.stdout
    assert nodes.links() == ["0.3.0", "0.2.0"] * 2


def test_one_that_does_not_speak_with_the_one_in_use_is_not_used(nodes: Nodes) -> None:
    for node in ("a", "b"):
        nodes.give(node, 5, protocol=(2, 3))
    done = nodes.go_to("0.5.0+0123abcd")
    assert done.returncode != 0
    assert "0.3.0+0123abcd on a speaks protocols 1 to 1, and 0.5.0+0123abcd speaks 2 to 3." in done.stdout
    assert nodes.links() == ["0.3.0", "0.2.0"] * 2
