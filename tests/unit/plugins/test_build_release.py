"""An archive made on the controller becomes programs that run on a node, from a checkout and from a package index."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lavalite.cluster.plugins.module_utils._release import Releases

PROGRAM = Path(__file__).resolve().parents[3] / "roles/release/files/build_release.py"
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
PACKAGE = {
    "lavalite/__init__.py": '__version__ = "0.9.0"\n',
    "lavalite/py.typed": "",
    "lavalite/wire/__init__.py": "",
    "lavalite/wire/frames.py": "PROTOCOL_MIN, PROTOCOL_MAX = 2, 3\n",
    "lavalite/lim/__init__.py": "",
    "lavalite/lim/daemon.py": "import tiny\n\ndef main():\n    print('lim with', tiny.__name__)\n",
}


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """A wheel by hand: no build tool, no network."""
    about = f"{name}-{version}.dist-info"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = files | {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": tags,
    }
    record = ""
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    made = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as out:
        for path, text in (content | {f"{about}/RECORD": f"{record}{about}/RECORD,,\n"}).items():
            out.writestr(path, text)
    return made


class Controller:
    """build_release.py with a lock file of one small package, and an index that is a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, folder / "index"
        self.index.mkdir()
        tiny = wheel(self.index, "tiny", "1.0", {"tiny.py": ""})
        self.program = Path(shutil.copy(PROGRAM, folder))
        for part in ("node", "control"):
            digest = hashlib.sha256(tiny.read_bytes()).hexdigest()
            (folder / f"{part}.txt").write_text(f"tiny==1.0 --hash=sha256:{digest}\n")

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        given = ["--part", "node", "--minor", MINOR, "--machine", platform.machine(), "--python", sys.executable]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        return subprocess.run(
            [sys.executable, str(self.program), *given, "--cache", str(self.folder / "cache"), *options],
            env=kept | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index), "PIP_CONFIG_FILE": os.devnull},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def build(self, *options: str) -> dict[str, Any]:
        done = self.run(*options)
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


def works_on_a_node(said: dict[str, Any], root: Path) -> None:
    releases = Releases(str(root))
    releases.unpack(said["name"], said["archive"], sys.executable)
    facts = releases.facts(said["name"])
    assert (facts["version"], facts["part"], facts["protocol"]) == (said["version"], "node", [2, 3])
    program = root / "releases" / said["name"] / "bin/lavalite-lim"
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.stdout == "lim with tiny\n", done.stderr


def test_a_release_of_an_index(controller: Controller, tmp_path: Path) -> None:
    wheel(controller.index, "lavalite", "0.9.0", PACKAGE)
    named = controller.build("--version", "0.9.0", "--name-only")
    assert (named["built"], named["protocol"]) == (True, None)
    said = controller.build("--version", "0.9.0")
    assert (said["built"], said["protocol"]) == (True, [2, 3])
    assert said["name"] == named["name"] and said["version"].startswith("0.9.0+")
    again = controller.build("--version", "0.9.0")
    assert again == said | {"built": False}
    works_on_a_node(said, tmp_path / "root")


def test_a_release_of_a_checkout(controller: Controller, tmp_path: Path) -> None:
    for path, text in PACKAGE.items():
        file = tmp_path / "checkout/src" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    checkout = str(tmp_path / "checkout")
    said = controller.build("--checkout", checkout)
    assert controller.build("--checkout", checkout, "--name-only") == said | {"built": False}
    (tmp_path / "checkout/src/lavalite/lim/__init__.py").write_text("# changed\n")
    assert controller.build("--checkout", checkout, "--name-only")["name"] != said["name"]
    works_on_a_node(said, tmp_path / "root")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "release_version is empty: say which version of PyPI, or set release_source: path."),
        (("--checkout", "/nowhere"), "release_path: /nowhere is no checkout of LavaLite."),
        (("--version", "0.8.0"), "The machine that Ansible runs on needs a package index, or an archive in"),
    ],
)
def test_what_cannot_be_made_is_said(controller: Controller, options: tuple[str, ...], sentence: str) -> None:
    done = controller.run(*options)
    assert done.returncode == 1
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert not list((controller.folder / "cache").glob("*"))
