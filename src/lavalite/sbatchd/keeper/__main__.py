"""The keeper as a program: `python -I -S …/keeper/__main__.py FOLDER [IDLE_SECONDS]`."""

import sys
from pathlib import Path
from types import ModuleType

# Isolated, Python finds the standard library alone. Of ours it is shown this package, and not those around it.
NAME = "lavalite.sbatchd.keeper"
package = ModuleType(NAME)
package.__path__ = [str(Path(__file__).resolve().parent)]
sys.modules.setdefault(NAME, package)

from lavalite.sbatchd.keeper.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
