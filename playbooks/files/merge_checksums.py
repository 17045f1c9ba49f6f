"""The slices' checksums as one digest over all files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from checksum_slice import overall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", type=int, default=8, help="how many slices there are")
    parser.add_argument("--from", type=Path, default=Path(), dest="folder", help="the folder they are in")
    options = parser.parse_args()
    sums: dict[str, str] = {}
    for number in range(1, options.of + 1):
        sums.update(json.loads((options.folder / f"slice-{number}.json").read_text()))
    print(overall(sums))


if __name__ == "__main__":
    main()
