"""On the node: an archive becomes a folder, whole or not at all. Arguments: ARCHIVE TARGET."""

import compileall
import os
import shutil
import sys
import tarfile
from pathlib import Path

archive, target = map(Path, sys.argv[1:])
part = target.with_name(f".{target.name}.part")
shutil.rmtree(part, ignore_errors=True)  # what an interrupted run left
os.umask(0o022)
with tarfile.open(archive) as source:
    source.extractall(part)  # noqa: S202  made by build_release.py
part.chmod(0o755)
compileall.compile_dir(part / "lib", quiet=2, stripdir=part, prependdir=target)
os.sync()  # the name must not be on the disk before the content is
part.rename(target)
archive.unlink()
