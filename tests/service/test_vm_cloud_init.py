"""The seed of a virtual machine, read by cloud-init itself: Debian's package, unpacked and not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from lavalite.sbatchd.vm.seed import documents
from lavalite.sbatchd.vm.wanted import VmName, wanted
from lavalite.wire.frames import PartOrder

MIB = 1024 * 1024
NAME = VmName("trainer-1", 7)
# What cloud-init makes of the network's description, for systemd-networkd. It imports more than it needs for that.
RENDER = """
import sys, unittest.mock, yaml
for each in ("requests", "requests.exceptions", "configobj"):
    sys.modules[each] = unittest.mock.MagicMock()
from cloudinit.net import network_state, networkd
state = network_state.parse_net_config_data(yaml.safe_load(sys.stdin))
print("\\n".join(networkd.Renderer()._render_content(state).values()))
"""

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def cloud_init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its Python package's folder."""
    folder = tmp_path_factory.mktemp("cloud-init")
    fetch = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "cloud-init"]
    subprocess.run(fetch, cwd=folder, check=True, capture_output=True)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
    return folder / "usr/lib/python3/dist-packages"


def seed(address: str = "198.18.0.50/24", gateway: str = "198.18.0.1") -> dict[str, str]:
    vm = {"cpu_milli": 1000, "memory_bytes": 512 * MIB, "image": "debian-12", "network_address": address,
          "gateway": gateway, "ssh_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ operator@desk"]}  # fmt: skip
    return documents(NAME, wanted(PartOrder(part="p", role="vm", host=NAME.host, incarnation=7, vm=vm)))


def test_user_data_is_what_cloud_inits_schema_says(cloud_init: Path) -> None:
    schema = json.loads((cloud_init / "cloudinit/config/schemas/schema-cloud-config-v1.json").read_text())
    config = json.loads(seed()["user-data"].removeprefix("#cloud-config"))
    jsonschema.Draft4Validator(schema).validate(config)
    known = {name for each in schema["allOf"] for name in _properties(schema, each)}
    assert set(config) <= known  # the schema itself lets any name pass
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(schema).validate({**config, "write_files": [{"content": "no path"}]})


def _properties(schema: dict[str, object], each: dict[str, str]) -> list[str]:
    found: object = schema["$defs"]
    assert isinstance(found, dict)
    return list(found[each["$ref"].rpartition("/")[2]].get("properties", {}))


@pytest.mark.parametrize(
    ("address", "gateway"),
    [("198.18.0.50/24", "198.18.0.1"), ("fd00::50/64", "fd00::1")],
)
def test_the_network_is_what_cloud_init_makes_of_it(cloud_init: Path, address: str, gateway: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RENDER],
        input=seed(address, gateway)["network-config"],
        env={"PYTHONPATH": str(cloud_init)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert f"MACAddress={NAME.mac}" in lines
    assert f"Address={address}" in lines
    assert f"Gateway={gateway}" in lines
    assert {line for line in lines if line.startswith("Destination=")} <= {"Destination=0.0.0.0/0"}
