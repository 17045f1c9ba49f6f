"""Text that came from a node is text: what would be a template in a play stays as it is, wherever it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_api import SmallApi

ROOT = Path(__file__).resolve().parents[2]
LINK = ROOT / ".ansible/collections/ansible_collections/lavalite/cluster"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
INVENTORY = """
plugin: lavalite.cluster.pools
cluster: c
mode: live
api: [API]
timeout: 5s
pools:
  general: {nodes: "*", kinds: [cpu, memory], default: true}
compose:
  first_provider: lavalite_parts[0].provider
keyed_groups:
  - key: lavalite_parts[0].provider
    prefix: from
"""
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  module_defaults:
    group/lavalite.cluster.api: {api: [API], connect_timeout: 5}
  tasks:
    - {lavalite.cluster.cluster_info: {}, register: told_cluster}
    - {lavalite.cluster.node_info: {}, register: told_nodes}
    - {lavalite.cluster.pool_info: {}, register: told_pools}
    - {lavalite.cluster.logical_host_info: {}, register: told_hosts}
    - {lavalite.cluster.job_info: {tasks: true}, register: told_jobs}
    - {lavalite.cluster.event_info: {}, register: told_events}
    - {lavalite.cluster.node: {name: n1, state: drained}, register: told_node}
    - ansible.builtin.set_fact:
        all_told:
          - "{{ told_cluster }}"
          - "{{ told_nodes }}"
          - "{{ told_pools }}"
          - "{{ told_hosts }}"
          - "{{ told_jobs }}"
          - "{{ told_events }}"
          - "{{ told_node }}"
          - "{{ hostvars.web.lavalite_parts }}"
          - "{{ hostvars.web.lavalite_reason }}"
          - "{{ hostvars.web.lavalite_circuits }}"
          - "{{ hostvars.web.lavalite_degraded }}"
          - "{{ hostvars.web.lavalite_executor }}"
          - "{{ hostvars.web.first_provider }}"
    - ansible.builtin.debug: {var: all_told}
    - ansible.builtin.debug: {msg: "{{ item.name }} {{ item.labels.bad[0] }} {{ item.labels }}"}
      loop: "{{ told_nodes.nodes }}"
      when: item.labels.bad[0] | length > 0 and item.labels.bad[0] != 'x'
    - ansible.builtin.copy: {content: "{{ all_told | to_json }}", dest: FOLDER/told, mode: "0600"}
    - lavalite.cluster.node: {name: n1, labels: "{{ {'copied': told_nodes.nodes[0].labels.bad} }}"}
"""


def bad(folder: Path, number: int) -> str:
    """A template that would leave a mark, were it ever one."""
    mark = folder / f"mark{number}"
    return "{{ lookup('ansible.builtin.pipe', 'touch " + str(mark) + "') }}{% if true %}x{% endif %}"


@pytest.fixture
def api() -> Iterator[SmallApi]:
    if not LINK.exists():
        LINK.parent.mkdir(parents=True, exist_ok=True)
        LINK.symlink_to("../../../..")
    server = SmallApi()
    yield server
    server.close()


def test_templates_in_what_nodes_say_are_never_followed(tmp_path: Path, api: SmallApi) -> None:
    texts = [bad(tmp_path, number) for number in range(15)]
    node = {"name": texts[0], "state": texts[1], "labels": {"bad": [texts[2]], texts[3]: ["x"]}, "drain": None}
    part = {"kind": "cpu", "amount": 1, "provider": texts[4], "devices": [texts[5]]}
    circuit = {"id": texts[10], "provider": texts[11], "bits_per_second": 1, "links": [texts[12]]}
    host = {"name": "web", "state": "planned", "anchor": "", "pools": [], "parts": [part], "reason": texts[6],
            "circuits": [circuit], "degraded": [texts[13]], "executor": texts[14], "address": texts[14]}  # fmt: skip
    job = {"id": 1, "name": texts[7], "state": "failed"}
    said = {
        "nodes": [node],
        "pools": [{"name": "general", "nodes": [texts[0]]}],
        "hosts": [host],
        "queues": [],
        "jobs": [job],
        "tasks": [{"job": 1, "index": 0, "reason": texts[8]}],
    }

    def answer(method: str, path: str, query: str, body: Any) -> Any:
        last = path.rpartition("/")[2]
        if last == "status":
            return 200, {}, {"node": texts[0]}
        if last == "recent":
            return (
                200,
                {},
                {"items": [{"kind": "node", "name": texts[9]}][: "since=" in query], "cursor": "", "missed": 0},
            )
        if last in said:
            return 200, {"ETag": "1"}, {"items": said[last], "next_cursor": None}
        return 200, {}, node | {"operator_labels": {}}

    api.answer = answer
    (tmp_path / "pools.yml").write_text(INVENTORY.replace("API", api.url))
    (tmp_path / "play.yml").write_text(PLAY.replace("API", api.url).replace("FOLDER", str(tmp_path)))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LAVALITE_", "ANSIBLE_"))}
    environment |= {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_HOME": str(tmp_path / "home")}
    program = Path(sys.executable).parent / "ansible-playbook"
    command = [str(program), "-i", str(tmp_path / "pools.yml"), str(tmp_path / "play.yml"), "-vv"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("mark*")) == []
    told = (tmp_path / "told").read_text()
    for text in texts:
        assert json.dumps(text)[1:-1] in told, text
    labelled = next(body for _method, path, _token, body in api.asked if path.endswith("/labels"))
    assert labelled["labels"] == {"copied": [texts[2]]}
