"""SHA-256 of every source file of Python's own library: of one slice, or of all with one digest over them."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sysconfig
from pathlib import Path


def sources() -> list[Path]:
    """All of the library's files, always in the same order; what is installed beside it is left out."""
    root = Path(sysconfig.get_path("stdlib"))
    found = (path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    return sorted(path for path in found if "dist-packages" not in path.parts)


def checksums(paths: list[Path]) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def overall(sums: dict[str, str]) -> str:
    """One digest over all files, and how many they are."""
    digest = hashlib.sha256("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode())
    return f"{digest.hexdigest()} {len(sums)} files"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="all files at once")
    parser.add_argument("--of", type=int, default=8, help="how many slices there are")
    parser.add_argument("--slice", type=int, help="which, from 1; by default the task's own index")
    parser.add_argument("--into", type=Path, default=Path(), help="the folder for the slice's checksums")
    options = parser.parse_args()
    if options.all:
        print(overall(checksums(sources())))
        return
    number = options.slice or int(os.environ.get("LAVALITE_TASK") or os.environ["LSB_JOBINDEX"])
    sums = checksums(sources()[number - 1 :: options.of])
    target = options.into / f"slice-{number}.json"
    temporary = target.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(sums))
    temporary.replace(target)
    print(f"slice {number} of {options.of}: {len(sums)} files")


if __name__ == "__main__":
    main()
