# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Releases on a node: folders that are whole, and two links to them that are replaced in one step.

    ROOT/current      -> releases/NAME      what the daemons start from
    ROOT/previous     -> releases/NAME      the way back
    ROOT/releases/NAME/{bin,lib,release.json}
    ROOT/releases/.NAME.tar.gz              shipped, and removed once it is unpacked
    ROOT/releases/.NAME.part                on its way in:  made, then renamed
    ROOT/releases/.NAME.gone                on its way out: renamed, then removed
    ROOT/releases/.returning -> NAME        the way back while it is gone: the links change places one after the other

Whoever dies on the way leaves nothing that is taken for whole: release.json, which build_release.py wrote, counts the
files and their bytes.
"""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import errno
import glob
import json
import os
import re
import shutil
import subprocess
import tarfile
import zlib

FACTS = "release.json"
PROGRAMS = ("lavalite-lim", "lavalite-mbatchd", "lavalite-sbatchd")
RETURNING = ".returning"
COMPILED = "__pycache__"
TRANSIENT_UNITS = "/run/systemd/transient/*.service"


class ReleaseError(Exception):
    """`str()` of it is a sentence for people."""


class Releases:
    """What is below one root. Nothing is cached: each question looks."""

    def __init__(self, root):
        self.root = root
        self.folder = os.path.join(root, "releases")

    # --- looking ---

    def linked(self, link):
        """The name that `current` or `previous` points to; empty where it points nowhere that is ours."""
        try:
            target = os.readlink(os.path.join(self.root, link))
        except OSError:
            return ""
        folder, name = os.path.split(target)
        return name if folder in ("releases", self.folder) else ""

    def way_back(self):
        """The release before. Where going back was interrupted, the one that it was to end with."""
        try:
            return os.readlink(self._path(RETURNING))
        except OSError:
            return self.linked("previous")

    def names(self):
        """All folders here that are named like a release, whole or not: the oldest first."""
        try:
            found = [name for name in os.listdir(self.folder) if not name.startswith(".")]
        except OSError:
            return []
        return sorted(found, key=lambda name: (os.lstat(self._path(name)).st_mtime, name))

    def facts(self, name):
        """What release.json says of a release, or nothing where it is not whole."""
        try:
            with open(self._path(name, FACTS), encoding="utf-8") as file:
                facts = json.load(file)
            whole = facts["name"] == name and (facts["files"], facts["bytes"]) == counted(self._path(name))
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return facts if whole else {}

    def is_whole(self, name):
        return bool(self.facts(name))

    # --- coming and going ---

    def unpack(self, name, archive, python):
        """Make NAME out of an archive, compiled by `python`, whole or not at all. What was half there is replaced."""
        part, target = self._path("." + name + ".part"), self._path(name)
        os.makedirs(self.folder, mode=0o755, exist_ok=True)
        self.sweep(archive)
        if os.path.lexists(target):
            self.remove(name)
        extract(archive, part)
        os.chmod(part, 0o755)  # noqa: S103  users run what is in it
        compile_all(python, part, target)
        os.sync()  # the name must not be on the disk before the content is
        os.rename(part, target)
        os.utime(target)
        os.unlink(archive)
        if not self.is_whole(name):
            self.remove(name)
            raise ReleaseError("archive: %s is not %s, or not all of it. Make and ship it again." % (archive, name))

    def remove(self, name):
        gone = self._path("." + name + ".gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(self._path(name), gone)
        discard(gone)

    def sweep(self, archive):
        """Remove what interrupted runs left, but `archive`."""
        for name in os.listdir(self.folder):
            left = name.startswith(".") and name.endswith((".part", ".gone", ".tar.gz"))
            if left and self._path(name) != archive:
                discard(self._path(name))

    def switch(self, name):
        """`current` is NAME, and `previous` what was current. Interrupted, it is finished by saying it again."""
        if self.linked("current") != name:
            if name == self.linked("previous"):
                self._link(self.folder, RETURNING, name)
            if self.linked("current"):
                self._link(self.root, "previous", os.path.join("releases", self.linked("current")))
            self._link(self.root, "current", os.path.join("releases", name))
        if os.path.lexists(self._path(RETURNING)):
            os.unlink(self._path(RETURNING))

    def _link(self, folder, link, target):
        temporary = os.path.join(folder, ".%s.link" % link)
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(target, temporary)
        os.rename(temporary, os.path.join(folder, link))
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _path(self, *parts):
        return os.path.join(self.folder, *parts)


def described(facts):
    """What is told of a release: its version, for what it was made, and the protocols that it speaks."""
    return dict((key, facts.get(key)) for key in ("name", "version", "part", "python", "machine", "protocol"))


def discard(path):
    """Remove a folder, or whatever is in its place."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def counted(folder):
    """(files, their bytes) below `folder`, without release.json itself and what Python compiled."""
    files = size = 0
    for path, folders, names in os.walk(folder):
        if COMPILED in folders:
            folders.remove(COMPILED)
        for name in names:
            if path == folder and name == FACTS:
                continue
            files += 1
            size += os.lstat(os.path.join(path, name)).st_size
    return files, size


def extract(archive, folder):
    """Raises ReleaseError where the archive is none, or the disk is full."""
    try:
        with tarfile.open(archive) as source:
            # Tar's own safeguards, where this Python has them: nothing outside of the folder, no devices, no owners.
            if hasattr(tarfile, "data_filter"):
                source.extractall(folder, filter="data")
            else:
                source.extractall(folder)  # noqa: S202  made by build_release.py
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ReleaseError("root: there is no room for %s. Make some and run it again." % folder) from None
        raise ReleaseError("archive: %s cannot be unpacked: %s." % (archive, error.strerror or error)) from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ReleaseError("archive: %s is damaged: %s. Make and ship it again." % (archive, error)) from None


def compile_all(python, part, target):
    """Compiled now, since the daemons may not write there. A file that is for another Python is left as it is."""
    command = [python, "-I", "-m", "compileall", "-qq", "-s", part, "-p", target, os.path.join(part, "lib")]
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise ReleaseError("python: %s cannot be run: %s." % (python, error.strerror or error)) from None


def used(root):
    """{release: [PROGRAMS that run out of it]} of all that are in use.

    A file of theirs is mapped by a process or in its command, or is named by the unit of an attempt: the last that
    happens to an attempt is a program of the release by which it was started.

    What one may not look at (another user's process, to who is not root) is left out.
    """
    found = {}
    folder = os.path.join(os.path.realpath(root), "releases") + "/"
    for pid in (entry for entry in os.listdir("/proc") if entry.isdigit()):
        command = read("/proc/%s/cmdline" % pid).split("\0")
        programs = [os.path.basename(word) for word in command[:4] if os.path.basename(word) in PROGRAMS]
        named = named_in("\n".join(command), folder)
        for release in named | named_in(read("/proc/%s/maps" % pid), folder):
            found.setdefault(release, set()).update(programs)
    for unit in glob.glob(TRANSIENT_UNITS):
        for release in named_in(read(unit), folder):
            found.setdefault(release, set())
    return dict((release, sorted(programs)) for release, programs in found.items())


def read(path):
    """A file of the kernel's or systemd's, or nothing where it is gone or not ours to read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def named_in(text, folder):
    """The first folder below `folder` of each path in `text`."""
    return set(re.findall(re.escape(folder) + r"([^/\s\"']+)/", text))


def behind(in_use, current):
    """Which of the PROGRAMS run out of another release than `current`; `in_use` is what `used` says."""
    return sorted({program for name, programs in in_use.items() if name != current for program in programs})
