"""The inventory plugin as people use it: by `ansible-inventory`, offline and against an API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
NODES = """
lavalite_nodes:
  vars:
    sbatchd_state_path: "{{ '/srv' }}/sbatchd"
  hosts:
    n01: {ansible_host: 198.18.0.1, ansible_user: op, ansible_port: 2222, rack: r1}
    n02: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  children:
    lavalite_gpu:
      hosts:
        n03:
          lavalite_capacity: {cpu: 8, memory: 32GiB, gpu: {model: A100, count: 2}, special: {fpga: 2}}
          lim_labels: {rack: r9}
"""
POOLS = """
plugin: lavalite.cluster.pools
cluster: c
mode: MODE
api: [API]
timeout: 20s
capacity:
  n01: {cpu: 4, memory: 8GiB}
  n02: {cpu: 4, memory: 8GiB}
pools:
  general: {nodes: {group: lavalite_nodes}, kinds: [cpu, memory], default: true}
  gpus-r9: {nodes: {rack: r9}, kinds: [gpu, fpga]}
logical_hosts:
  web: {count: 2, cpu: 2, memory: 4GiB}
  trainer: {cpu: 4, memory: 4GiB, gpu: {count: 1, pool: gpus-r9}, special: {fpga: {count: 1, pool: gpus-r9}}}
"""


def inventory(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LAVALITE_", "ANSIBLE_"))}
    environment |= {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "home"),
        "COLUMNS": "500",
    }
    environment |= variables
    program = [str(Path(sys.executable).parent / "ansible-inventory"), "-i", str(folder / "inventory"), *arguments]
    return subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def write(folder: Path, pools: str, mode: str = "plan", api: str = "http://127.0.0.1:1") -> Path:
    (folder / "inventory").mkdir(exist_ok=True)
    (folder / "inventory/hosts.yml").write_text(NODES)
    (folder / "inventory/pools.yml").write_text(pools.replace("MODE", mode).replace("API", api))
    return folder


def listed(folder: Path) -> dict[str, Any]:
    done = inventory(folder, "--list")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return listed(write(tmp_path_factory.mktemp("planned"), POOLS))


def test_offline_logical_hosts_are_under_their_pools(planned: dict[str, Any]) -> None:
    assert sorted(planned["lavalite_hosts"]["hosts"]) == ["trainer", "web-1", "web-2"]
    assert sorted(planned["lavalite_pool_general"]["hosts"]) == ["trainer", "web-1", "web-2"]
    assert planned["lavalite_pool_gpus_r9"]["hosts"] == ["trainer"]
    assert sorted(planned["lavalite_state_planned"]["hosts"]) == ["trainer", "web-1", "web-2"]
    assert sorted(planned["lavalite_nodes"]["hosts"]) == ["n01", "n02"]


def test_offline_a_host_says_what_it_would_be_and_has_no_address(planned: dict[str, Any]) -> None:
    trainer = planned["_meta"]["hostvars"]["trainer"]
    assert trainer["lavalite_source"] == "plan"
    assert trainer["lavalite_anchor"] == "n03"
    assert trainer["lavalite_pools"] == ["general", "gpus-r9"]
    assert {part["kind"] for part in trainer["lavalite_parts"]} == {"cpu", "memory", "gpu", "fpga"}
    assert [part["devices"] for part in trainer["lavalite_parts"] if part["kind"] == "fpga"] == [["fpga0"]]
    assert not [name for name in trainer if name.startswith("ansible_")]


def test_offline_what_comes_from_elsewhere_comes_over_the_links_of_the_document(tmp_path: Path) -> None:
    (tmp_path / "inventory").symlink_to(ROOT / "inventories/composed")
    analytics = listed(tmp_path)["_meta"]["hostvars"]["analytics"]
    assert [(part["kind"], part["provider"]) for part in analytics["lavalite_parts"]] == [
        ("cpu", "n01"),
        ("memory", "n01"),
        ("memory", "n02"),
        ("storage", "n03"),
    ]
    assert {circuit["provider"]: sorted(circuit["links"]) for circuit in analytics["lavalite_circuits"]} == {
        "n02": ["link/n01/r1", "link/n02/r1"],
        "n03": ["link/n01/r1", "link/n03/r1"],
    }


def test_offline_nothing_is_marked_unsafe_for_other_tools(planned: dict[str, Any]) -> None:
    assert "__ansible_unsafe" not in json.dumps(planned)


def test_the_marker_is_on_nodes_too(planned: dict[str, Any]) -> None:
    assert planned["_meta"]["hostvars"]["n01"]["lavalite_pools_source"].endswith("/inventory/pools.yml")
    assert planned["_meta"]["hostvars"]["n01"]["lavalite_cluster"] == "c"


def test_a_bad_document_is_told_whole_and_is_a_failure(tmp_path: Path) -> None:
    bad = POOLS.replace("[cpu, memory]", "[cpu, memroy]").replace("cpu: 2,", "cpu: lots,") + "colour: red\n"
    done = inventory(write(tmp_path, bad), "--graph")
    assert done.returncode != 0
    for place in ("pools.yml:11: pools.general.kinds", "pools.yml:14: logical_hosts.web.cpu", "pools.yml:16: colour"):
        assert place in done.stderr
    assert "Traceback" not in done.stderr


def test_what_fits_nowhere_is_told_with_the_nearest(tmp_path: Path) -> None:
    done = inventory(write(tmp_path, POOLS.replace("cpu: 2,", "cpu: 4,").replace("count: 2", "count: 4")), "--graph")
    assert done.returncode != 0
    assert "logical_hosts.web" in done.stderr


@pytest.mark.parametrize("name", ["n01", "lavalite_gpu"])
def test_a_host_named_like_a_node_or_a_group_is_refused(tmp_path: Path, name: str) -> None:
    done = inventory(write(tmp_path, POOLS.replace("trainer:", f"{name}:")), "--graph")
    assert done.returncode != 0
    assert "logical_hosts." + name in done.stderr


def test_a_bad_capacity_of_a_node_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path, POOLS)
    (folder / "inventory/hosts.yml").write_text(NODES.replace("memory: 32GiB", "memory: lots"))
    done = inventory(folder, "--graph")
    assert done.returncode != 0
    assert "host n03: lavalite_capacity: memory" in done.stderr


def test_two_documents_are_one_too_many(tmp_path: Path) -> None:
    folder = write(tmp_path, POOLS)
    (folder / "inventory/z.pools.yml").write_text((folder / "inventory/pools.yml").read_text().replace("web", "w"))
    done = inventory(folder, "--graph")
    assert done.returncode != 0
    assert "Keep one pools.yml" in done.stderr


def host(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "composed",
        "anchor": "n01",
        "pools": ["general"],
        "parts": [],
        "reason": "",
    } | fields


def answering(api: Any, *hosts: dict[str, Any]) -> Any:
    api.answer = lambda _m, path, *_: (200, {"ETag": '"1"'}, {"items": list(hosts), "next_cursor": None})
    return api


def test_live_hosts_are_reached_by_way_of_their_anchor(api: Any, tmp_path: Path) -> None:
    answering(api, host("web-1"), host("web-2", anchor="n02"), host("late", state="composing"))
    variables = listed(write(tmp_path, POOLS, "live", api.url))["_meta"]["hostvars"]
    one, two, late = variables["web-1"], variables["web-2"], variables["late"]
    assert (one["ansible_host"], one["ansible_user"], one["ansible_port"]) == ("198.18.0.1", "op", 2222)
    assert one["ansible_shell_executable"] == "{{ hostvars['n01']['sbatchd_state_path'] }}/hosts/web-1/enter"
    assert (two["ansible_host"], two["ansible_connection"]) == ("n02", "local")
    assert two["ansible_python_interpreter"] == "{{ hostvars['n02']['ansible_python_interpreter'] }}"
    assert "rack" not in one
    assert "ansible_shell_executable" not in late
    assert one["lavalite_source"] == "live"


def test_live_text_from_the_cluster_is_never_a_template(api: Any, tmp_path: Path) -> None:
    text = "{{ lookup('pipe', 'id') }}"
    answering(api, host("web-1", reason=text, parts=[{"id": text, "kind": "gpu", "devices": [text]}]))
    folder = write(tmp_path, POOLS, "live", api.url)
    assert listed(folder)["_meta"]["hostvars"]["web-1"]["lavalite_reason"] == {"__ansible_unsafe": text}
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    program = [str(Path(sys.executable).parent / "ansible"), "-i", str(folder / "inventory"), "web-1"]
    program += ["-m", "debug", "-a", "msg={{ lavalite_reason }}-{{ lavalite_parts[0].devices[0] }}"]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert f"{text}-{text}" in done.stdout
    assert "uid=" not in done.stdout


@pytest.mark.parametrize("name", ["n01", "lavalite_gpu", "all", "{{ 1 }}", "../x", "", "a b", None])
def test_live_a_name_that_is_taken_or_none_is_refused(api: Any, tmp_path: Path, name: Any) -> None:
    answering(api, host(name))
    done = inventory(write(tmp_path, POOLS, "live", api.url), "--graph")
    assert done.returncode != 0
    assert "name of a" in done.stderr


def test_live_an_api_that_is_silent_is_a_failure_and_auto_plans(tmp_path: Path) -> None:
    impatient = POOLS.replace("timeout: 20s", "timeout: 1s")
    done = inventory(write(tmp_path, impatient, "live"), "--graph")
    assert done.returncode != 0
    assert "no API answers" in done.stderr
    assert "set LAVALITE_MODE=plan for this once" in done.stderr
    assert "lavalite_state_planned" in inventory(write(tmp_path, impatient, "auto"), "--graph").stdout


def test_without_the_package_nothing_is_planned_but_what_is_live_is_read(api: Any, tmp_path: Path) -> None:
    (tmp_path / "hidden/lavalite").mkdir(parents=True)
    (tmp_path / "hidden/lavalite/__init__.py").write_text("")
    hidden = {"PYTHONPATH": str(tmp_path / "hidden")}
    done = inventory(write(tmp_path, POOLS, "plan"), "--graph", **hidden)
    assert done.returncode != 0
    assert "the Python package lavalite is not installed" in done.stderr
    answering(api, host("web-1"))
    assert "web-1" in inventory(write(tmp_path, POOLS, "live", api.url), "--graph", **hidden).stdout
    done = inventory(write(tmp_path, POOLS + "colour: red\n", "live", api.url), "--graph", **hidden)
    assert "colour: unknown key" in done.stderr


def test_the_environments_mode_goes_before_the_files(tmp_path: Path) -> None:
    folder = write(tmp_path, POOLS, "live")
    assert "lavalite_state_planned" in inventory(folder, "--graph", LAVALITE_MODE="plan").stdout
    assert "nonsense is no mode" in inventory(folder, "--graph", LAVALITE_MODE="nonsense").stderr


def test_live_an_api_that_refuses_is_a_failure_even_for_auto(api: Any, tmp_path: Path) -> None:
    api.answer = lambda *_: (401, {}, {"errors": [{"code": "no_token", "message": "a token is needed"}]})
    done = inventory(write(tmp_path, POOLS, "auto", api.url), "--graph")
    assert done.returncode != 0
    assert "a token is needed" in done.stderr


def test_groups_of_ones_own(api: Any, tmp_path: Path) -> None:
    answering(api, host("web-1"))
    own = POOLS + "keyed_groups: [{key: lavalite_anchor, prefix: at}]\n"
    own += "groups: {webs: lavalite_state == 'composed'}\n"
    hosts = listed(write(tmp_path, own, "live", api.url))
    assert hosts["at_n01"]["hosts"] == ["web-1"]
    assert hosts["webs"]["hosts"] == ["web-1"]


def test_variables_of_ones_own_and_groups_by_them(api: Any, tmp_path: Path) -> None:
    parts = [{"id": "x", "kind": "cpu", "amount": 2000, "provider": "n01"}]
    answering(api, host("web-1", parts=parts), host("late", state="composing"))
    own = POOLS + "compose: {cores: lavalite_parts | map(attribute='amount') | sum // 1000}\n"
    own += "keyed_groups: [{key: cores | string, prefix: cores}]\n"
    own += "groups: {wide: cores > 1}\n"
    hosts = listed(write(tmp_path, own, "live", api.url))
    assert hosts["_meta"]["hostvars"]["web-1"]["cores"] == 2
    assert hosts["cores_2"]["hosts"] == ["web-1"]
    assert hosts["wide"]["hosts"] == ["web-1"]


def test_what_is_strict_fails_where_something_is_not_defined(api: Any, tmp_path: Path) -> None:
    answering(api, host("web-1"))
    own = POOLS + "keyed_groups: [{key: no_such_thing, prefix: x}]\nstrict: STRICT\n"
    folder = write(tmp_path, own.replace("STRICT", "false"), "live", api.url)
    assert listed(folder)["lavalite_hosts"]["hosts"] == ["web-1"]
    done = inventory(write(tmp_path, own.replace("STRICT", "true"), "live", api.url), "--graph")
    assert done.returncode != 0
    assert "no_such_thing" in done.stderr


def test_a_part_says_what_it_has_and_no_more(api: Any, tmp_path: Path) -> None:
    part = {"id": "web-1/gpu/n01", "kind": "gpu", "amount": 1000, "provider": "n01", "pool": "gpus", "circuit": ""}
    answering(api, host("web-1", parts=[{**part, "devices": ["GPU-1"]}, {**part, "devices": []}]))
    parts = listed(write(tmp_path, POOLS, "live", api.url))["_meta"]["hostvars"]["web-1"]["lavalite_parts"]
    told = {"kind": "gpu", "amount": 1000, "provider": "n01", "pool": "gpus"}
    assert parts == [{**told, "devices": ["GPU-1"]}, told]
    fields = "name,state,anchor,pools,parts,circuits,executor,address,degraded,reason"
    assert f"fields={fields.replace(',', '%2C')}" in api.asked[0][1]


CIRCUIT = {
    "id": "web-1/n03",
    "anchor": "n01",
    "provider": "n03",
    "bits_per_second": 10**9,
    "links": ["link/n03/r1", "link/n01/r1"],
}


def test_a_host_says_what_comes_from_elsewhere_and_by_which_way(api: Any, tmp_path: Path) -> None:
    far = {"id": "f", "kind": "memory", "amount": 2**30, "provider": "n03", "pool": "general", "circuit": "web-1/n03"}
    answering(api, host("web-1", parts=[far], circuits=[CIRCUIT], degraded=["f"]), host("web-2"))
    variables = listed(write(tmp_path, POOLS, "live", api.url))["_meta"]["hostvars"]
    one, two = variables["web-1"], variables["web-2"]
    assert one["lavalite_parts"] == [{name: far[name] for name in far if name != "id"}]
    assert one["lavalite_circuits"] == [{name: CIRCUIT[name] for name in CIRCUIT if name != "anchor"}]
    assert (one["lavalite_executor"], one["lavalite_degraded"]) == ("bare", ["f"])
    assert two["lavalite_circuits"] == [] and "lavalite_degraded" not in two


def machine(address: Any, **fields: Any) -> dict[str, Any]:
    return host("web-1", executor="vm", address=address, **fields)


@pytest.mark.parametrize(
    ("address", "wanted"),
    [("198.18.0.7/24", "198.18.0.7"), ("198.18.0.7", "198.18.0.7"), ("fd00:0::7/64", "fd00::7")],
)
def test_live_a_virtual_machine_is_reached_at_its_address(
    api: Any, tmp_path: Path, address: str, wanted: str
) -> None:
    answering(api, machine(address))
    folder = write(tmp_path, POOLS, "live", api.url)
    hosts = yaml.safe_load(NODES)
    hosts["lavalite_nodes"]["vars"] |= {"ansible_shell_executable": "/bin/bash", "ansible_become": True}
    (folder / "inventory/hosts.yml").write_text(yaml.safe_dump(hosts))
    variables = listed(folder)["_meta"]["hostvars"]["web-1"]
    reached = {name: variables[name] for name in variables if name.startswith("ansible_")}
    assert reached == {"ansible_host": wanted, "ansible_user": "root", "ansible_connection": "ssh"}
    assert variables["lavalite_executor"] == "vm" and variables["lavalite_anchor"] == "n01"


@pytest.mark.parametrize(
    "address",
    [
        "",
        None,
        "n03",
        "-oProxyCommand=id",
        "127.0.0.1/8",
        "::1",
        "0.0.0.0",
        "224.0.0.1",
        "fe80::1%{{ 1 }}",
        7,
        "{{ 1 }}",
    ],
)
def test_live_a_virtual_machine_without_a_good_address_cannot_be_reached(
    api: Any, tmp_path: Path, address: Any
) -> None:
    answering(api, machine(address))
    folder = write(tmp_path, POOLS, "live", api.url)
    done = inventory(folder, "--list")
    assert done.returncode == 0 and "is no machine's IP address" in done.stderr
    assert [n for n in json.loads(done.stdout)["_meta"]["hostvars"]["web-1"] if n.startswith("ansible_")] == []


def test_live_a_virtual_machine_that_is_not_composed_has_no_address(api: Any, tmp_path: Path) -> None:
    answering(api, machine("198.18.0.7/24", state="composing"))
    variables = listed(write(tmp_path, POOLS, "live", api.url))["_meta"]["hostvars"]["web-1"]
    assert [name for name in variables if name.startswith("ansible_")] == []


def test_live_a_scheduler_that_knows_fewer_fields_is_asked_for_all_that_it_has(api: Any, tmp_path: Path) -> None:
    def answer(_method: str, _path: str, query: str, _body: Any) -> Any:
        if "fields" in query:
            fault = {"code": "bad_input", "message": "a host has no field circuits", "field": "fields"}
            return 422, {}, {"errors": [fault]}
        return 200, {"ETag": '"1"'}, {"items": [host("web-1")], "next_cursor": None}

    api.answer = answer
    variables = listed(write(tmp_path, POOLS, "live", api.url))["_meta"]["hostvars"]["web-1"]
    assert variables["ansible_host"] == "198.18.0.1"


def cached(folder: Path, url: str) -> Path:
    options = f"cache: true\ncache_plugin: ansible.builtin.jsonfile\ncache_connection: {folder / 'cache'}\n"
    return write(folder, POOLS + options, "live", url)


def test_the_cache_is_used_as_long_as_the_tag_holds(api: Any, tmp_path: Path) -> None:
    answering(api, host("web-1"), host("gone", state="released"))
    folder = cached(tmp_path, api.url)
    listed(folder)
    api.asked.clear()
    api.answer = lambda *_: (304, {"ETag": '"1"'}, b"")
    assert listed(folder)["lavalite_hosts"]["hosts"] == ["web-1"]
    assert len(api.asked) == 1
    answering(api, host("web-2"))
    assert listed(folder)["lavalite_hosts"]["hosts"] == ["web-2"]


def test_hosts_that_change_while_they_are_read_are_cached_as_of_the_first_page(api: Any, tmp_path: Path) -> None:
    """So that the next look finds that the tag does not hold any more."""

    def answer(_method: str, _path: str, query: str, _body: Any) -> Any:
        second = "cursor=web-1" in query
        name, tag, cursor = ("web-2", '"2"', None) if second else ("web-1", '"1"', "web-1")
        return 200, {"ETag": tag}, {"items": [host(name)], "next_cursor": cursor}

    api.answer = answer
    folder = cached(tmp_path, api.url)
    assert listed(folder)["lavalite_hosts"]["hosts"] == ["web-1", "web-2"]
    api.asked.clear()
    tags = []
    api.heard = tags.append
    listed(folder)
    assert [tag.get("If-None-Match") for tag in tags] == ['"1"', None]


def test_what_has_no_tag_is_not_cached(api: Any, tmp_path: Path) -> None:
    api.answer = lambda *_: (200, {}, {"items": [host("web-1")], "next_cursor": None})
    folder = cached(tmp_path, api.url)
    listed(folder)
    answering(api, host("web-2"))
    assert listed(folder)["lavalite_hosts"]["hosts"] == ["web-2"]


def test_a_cache_that_holds_something_else_is_not_believed(api: Any, tmp_path: Path) -> None:
    answering(api, host("web-1"))
    folder = cached(tmp_path, api.url)
    listed(folder)
    for file in (tmp_path / "cache").iterdir():
        file.write_text(json.dumps({key: json.dumps({"hosts": 1}) for key in json.loads(file.read_text())}))
    answering(api, host("web-2"))
    assert listed(folder)["lavalite_hosts"]["hosts"] == ["web-2"]
