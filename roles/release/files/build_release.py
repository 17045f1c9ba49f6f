"""A release as one archive, made on the machine that Ansible runs on: nodes need no internet.

The archive holds lib/ (LavaLite and what it needs, by the hashes of the lock file beside this program), bin/, and
release.json, by which a node finds out whether it has all of it and which protocols it speaks. Its name says what is
in it, so an archive that is there already is not made again:

    VERSION+DIGEST-PART-pyMINOR       on the node, below /opt/lavalite/releases

DIGEST is over LavaLite's own source, the lock file and this program. PART is `node` or `control`: who may lead needs
more than who works. One line of JSON comes out: name, version, archive, built, and protocol, the range that it speaks
(null where that is not known yet).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
OLDEST_GLIBC, NEWEST_GLIBC = 17, 28
"""2.N: what wheels may ask for. Every node has at least the newest."""
FACTS = "release.json"
ENTRIES = {
    "node": {
        "lavalite-lim": "lavalite.lim.daemon",
        "lavalite-sbatchd": "lavalite.sbatchd.daemon",
        "lavalite-end-attempts": "lavalite.sbatchd.ending",
        "lavalite-node-key": "lavalite.wire.node_key",
        "lavalite-host": "lavalite.sbatchd.ask",
    },
    "control": {"lavalite": "lavalite.cli.main", "lavalite-mbatchd": "lavalite.mbatchd.daemon"},
}
ENTRY = """#!{python} -I
import os
import sys

release = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(0, os.path.join(release, "lib"))

from {module} import main

sys.exit(main())
"""


class Refused(Exception):
    """A sentence with the way out."""


def main() -> int:
    options = arguments()
    try:
        version = release_version(options)
        name = f"{version}-{options.part}-py{options.minor.replace('.', '')}"
        archive = options.cache / f"{name}-{options.machine}.tar.gz"
        built = not archive.exists()
        if built and not options.name_only:
            build(options, name, version, archive)
        protocol = protocol_of(options.checkout / "src") if options.checkout else protocol_in(archive)
    except Refused as problem:
        print(problem, file=sys.stderr)
        return 1
    said = {"name": name, "version": version, "archive": str(archive), "built": built, "protocol": protocol}
    print(json.dumps(said))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="LavaLite's source; without it, PyPI's --version")
    parser.add_argument("--version", default="", help="which one of PyPI")
    parser.add_argument("--part", choices=sorted(ENTRIES), required=True)
    parser.add_argument("--minor", required=True, help="the nodes' Python, such as 3.11")
    parser.add_argument("--machine", required=True, help="the nodes' architecture, such as x86_64")
    parser.add_argument("--python", default="/usr/bin/python3", help="the nodes' interpreter")
    parser.add_argument("--cache", type=Path, required=True, help="the folder of archives")
    parser.add_argument("--name-only", action="store_true", help="say what it would be called; build nothing")
    return parser.parse_args()


def release_version(options: argparse.Namespace) -> str:
    """VERSION+DIGEST. Raises Refused."""
    digest = hashlib.sha256(options.python.encode())
    # The lock files of both parts count: a candidate and a worker of one release then have the same number.
    for file in (Path(__file__), *(HERE / f"{part}.txt" for part in sorted(ENTRIES))):
        digest.update(file.read_bytes())
    if options.checkout is None:
        if not options.version:
            raise Refused("release_version is empty: say which version of PyPI, or set release_source: path.")
        return f"{options.version}+{digest.hexdigest()[:8]}"
    for file in sources(options.checkout):
        digest.update(f"{file.relative_to(options.checkout)}\0".encode() + file.read_bytes())
    text = (options.checkout / "src/lavalite/__init__.py").read_text()
    found = re.search(r'^__version__ = "([0-9][0-9A-Za-z.]*)"$', text, re.MULTILINE)
    if found is None:
        raise Refused(f"{options.checkout}/src/lavalite/__init__.py says no __version__.")
    return f"{found[1]}+{digest.hexdigest()[:8]}"


def sources(checkout: Path) -> Iterator[Path]:
    """The files of the package, in a fixed order. Raises Refused."""
    package = checkout / "src/lavalite"
    if not (package / "__init__.py").is_file():
        raise Refused(f"release_path: {checkout} is no checkout of LavaLite. Name one, or set release_source: pypi.")
    yield from sorted(
        file for file in package.rglob("*") if file.is_file() and (file.suffix == ".py" or file.name == "py.typed")
    )


def protocol_of(folder: Path) -> list[int]:
    """[oldest, newest] that the package below `folder` speaks. Raises Refused."""
    file = folder / "lavalite/wire/frames.py"
    found = re.search(r"^PROTOCOL_MIN, PROTOCOL_MAX = ([0-9]+), ([0-9]+)$", file.read_text(), re.MULTILINE)
    if found is None:
        raise Refused(f"{file} does not say which protocols it speaks.")
    return [int(found[1]), int(found[2])]


def protocol_in(archive: Path) -> list[int] | None:
    """The same of an archive that is there."""
    if not archive.exists():
        return None
    with tarfile.open(archive) as source:
        # The first entry but the folder itself, so that little has to be read.
        while (entry := source.next()) is not None:
            if entry.name == f"./{FACTS}" and (file := source.extractfile(entry)) is not None:
                protocol: list[int] = json.load(file)["protocol"]
                return protocol
    return None


def build(options: argparse.Namespace, name: str, version: str, archive: Path) -> None:
    """Whole or not at all. Raises Refused with what pip said."""
    options.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.cache, prefix=".building-") as folder:
        tree = Path(folder, name)
        (tree / "bin").mkdir(parents=True)
        install(options, tree / "lib", ["--require-hashes", "--requirement", str(HERE / f"{options.part}.txt")])
        shutil.rmtree(tree / "lib/bin", ignore_errors=True)  # programs of others, with this machine's Python in them
        if options.checkout is None:
            install(options, tree / "lib", [f"lavalite=={options.version}"])
        else:
            for file in sources(options.checkout):
                target = tree / "lib" / file.relative_to(options.checkout / "src")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        entries = ENTRIES["node"] | (ENTRIES["control"] if options.part == "control" else {})
        for program, module in entries.items():
            (tree / "bin" / program).write_text(ENTRY.format(python=options.python, module=module))
        facts = {
            "name": name,
            "version": version,
            "part": options.part,
            "python": options.minor,
            "machine": options.machine,
            "protocol": protocol_of(tree / "lib"),
        }
        files = [file for file in tree.rglob("*") if not file.is_dir()]
        compile_all(options, name, tree / "lib")
        counted = {"files": len(files), "bytes": sum(file.lstat().st_size for file in files)}
        (tree / FACTS).write_text(json.dumps(facts | counted))
        pack(tree, Path(folder, "archive"))
        Path(folder, "archive").replace(archive)


def install(options: argparse.Namespace, target: Path, what: list[str]) -> None:
    short = options.minor.replace(".", "")
    platforms = [f"manylinux_2_{n}_{options.machine}" for n in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
    platforms += [f"manylinux{name}_{options.machine}" for name in ("2014", "2010", "1")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--root-user-action", "ignore", "--target", str(target), "--no-deps", "--no-compile"]
    command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", options.minor]
    command += [word for abi in (f"cp{short}", "abi3", "none") for word in ("--abi", abi)]
    command += [word for platform in platforms for word in ("--platform", platform)]
    done = subprocess.run([*command, *what], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise Refused(
            f"pip cannot fetch what Python {options.minor} on {options.machine} needs: {' '.join(said)} "
            f"The machine that Ansible runs on needs a package index, or an archive in {options.cache}."
        )


def compile_all(options: argparse.Namespace, name: str, folder: Path) -> None:
    """Here once rather than on each node, where this is the same Python; else each node does it as it unpacks."""
    if options.minor != "{}.{}".format(*sys.version_info[:2]):
        return
    command = [sys.executable, "-I", "-m", "compileall", "-qq", "-j", "0", "-s", str(folder.parent)]
    # What tracebacks call the files, where release_root is the usual one.
    command += ["-p", f"/opt/lavalite/releases/{name}", str(folder)]
    # A file that is for another Python is left as it is.
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)


def pack(tree: Path, archive: Path) -> None:
    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mode = 0o755 if entry.isdir() or entry.name.startswith("./bin/") else 0o644
        return entry

    with tarfile.open(archive, "w:gz", compresslevel=1) as out:
        out.add(tree / FACTS, f"./{FACTS}", filter=plain)
        for folder in ("bin", "lib"):
            out.add(tree / folder, f"./{folder}", filter=plain)


if __name__ == "__main__":
    sys.exit(main())
