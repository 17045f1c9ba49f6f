"""`lavalite-node-key FILE`: this node's public key, on stdout. Nothing of the private half is ever said.

The key is made if there is none, for the user who asks: run it as the user of the LIM.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lavalite.base.errors import InputError, LavaLiteError
from lavalite.wire.keys import NodeKey


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Prints one line, {"created": …, "public": "k4.public.…"}; returns the exit code."""
    parser = argparse.ArgumentParser(prog="lavalite-node-key", description="Show this node's public key.")
    parser.add_argument("file", type=Path, metavar="FILE", help="the private key; made if it is not there")
    parser.add_argument("--no-create", action="store_true", help="fail if it is not there")
    options = parser.parse_args(argv)
    try:
        created = not options.file.exists()
        if created and options.no_create:
            raise InputError(f"there is no key {options.file}", code="no_key", hint="Leave out --no-create.")
        print(json.dumps({"created": created, "public": NodeKey.load_or_create(options.file).public}))
    except (LavaLiteError, OSError) as error:
        print(error, file=sys.stderr)
        return error.exit_code if isinstance(error, LavaLiteError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
