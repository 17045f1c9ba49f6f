# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files, folders and links, each as it is wanted: looked at, compared, and brought to that in one step."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import errno
import grp
import os
import pwd
import stat
import subprocess
import tempfile

SAID_BYTES = 400
SHOWN_BYTES = 100 * 1024


class FilesError(Exception):
    """`str()` of it is a sentence for people."""


class Wanted:
    """One path, and what is to be there: `state` file, directory, link or absent.

    A file without `content` keeps its own: only mode and owner are seen to. `validate` are the words of a command, in
    which %s is the new content's file before it is in its place.
    """

    def __init__(self, path, state="file", content=None, src="", mode="", owner="", group="", validate=()):
        self.path, self.state, self.content, self.src = path, state, content, src
        self.mode = int(mode, 8) if mode else None
        self.owner, self.group, self.validate = owner, group, list(validate)

    def bring(self, check_mode):
        """None where it is as it should be, else what diff mode shows. Raises FilesError, OSError."""
        before = seen(self.path)
        if self.state == "absent":
            if before is None:
                return None
            if stat.S_ISDIR(before.st_mode):
                raise FilesError("%s is a folder, and no file that could be removed." % self.path)
            if not check_mode:
                os.unlink(self.path)
            return dict(before="there\n", after="absent\n")
        return getattr(self, "_bring_" + self.state)(before, check_mode)

    def _bring_link(self, before, check_mode):
        if before is not None and not stat.S_ISLNK(before.st_mode):
            raise FilesError("%s is there and no link. Move it away." % self.path)
        now = os.readlink(self.path) if before is not None else ""
        if not check_mode and not os.path.exists(os.path.join(os.path.dirname(self.path), self.src)):
            raise FilesError(
                "%s would lead to %s, which is not there. Install the release first." % (self.path, self.src)
            )
        if now == self.src:
            return None
        if not check_mode:
            temporary = "%s.new" % self.path
            if os.path.lexists(temporary):
                os.unlink(temporary)
            os.symlink(self.src, temporary)
            os.rename(temporary, self.path)
        return dict(before="-> %s\n" % now, after="-> %s\n" % self.src)

    def _bring_directory(self, before, check_mode):
        if before is not None and stat.S_ISLNK(before.st_mode) and os.path.isdir(self.path):
            before = os.stat(self.path)
        if before is not None and not stat.S_ISDIR(before.st_mode):
            raise FilesError("%s is there and no folder. Move it away." % self.path)
        difference = self._attributes(before)
        if before is None and not check_mode:
            self._make_folder(self.path)
        elif not check_mode:
            self._set_attributes(self.path, before)
        return difference

    def _make_folder(self, path):
        """Parents that are missing become like it."""
        parent = os.path.dirname(path)
        if parent and not os.path.isdir(parent):
            self._make_folder(parent)
        os.mkdir(path, 0o700)
        self._set_attributes(path, os.stat(path))

    def _bring_file(self, before, check_mode):
        if before is not None and stat.S_ISDIR(before.st_mode):
            raise FilesError("%s is a folder. Move it away." % self.path)
        if self.content is None:
            if before is None:
                if check_mode:  # what a task before would have made
                    return None
                raise FilesError("%s is not there." % self.path)
            difference = self._attributes(before)
            if difference and not check_mode:
                self._set_attributes(self.path, before)
            return difference
        wanted = self.content.encode("utf-8")
        now = read(self.path) if before is not None and stat.S_ISREG(before.st_mode) else None
        if now == wanted:
            difference = self._attributes(before)
            if difference and not check_mode:
                self._set_attributes(self.path, before)
            return difference
        if not check_mode:
            self._replace(wanted, before)
        return dict(before=shown(now), after=shown(wanted))

    def _replace(self, content, before):
        """In one step, once who is to read it finds it right."""
        folder, name = os.path.split(self.path)
        descriptor, temporary = tempfile.mkstemp(prefix=".%s." % name, dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            if self.validate:
                self._ask(temporary)
            made = os.stat(temporary)
            if before is not None and stat.S_ISREG(before.st_mode):
                # What is not said stays as it was.
                os.chown(temporary, before.st_uid, before.st_gid)
                os.chmod(temporary, stat.S_IMODE(before.st_mode))
                made = os.stat(temporary)
            self._set_attributes(temporary, made)
            # By this is told who has read it and who has not; checking it may have taken long.
            os.utime(temporary)
            os.rename(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise

    def _ask(self, temporary):
        command = [word.replace("%s", temporary) for word in self.validate]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
            )
        except OSError as error:
            raise FilesError("%s cannot be asked about %s: %s." % (command[0], self.path, error.strerror)) from None
        if done.returncode:
            text = done.stdout.decode("utf-8", "replace").replace(temporary, self.path)
            said = " ".join(text.split())[-SAID_BYTES:] or "nothing"
            raise FilesError("%s refuses what %s would be, and says: %s" % (command[0], self.path, said))

    def _ids(self):
        """(user id, group id), -1 where nothing is said; None where there is none of that name (yet)."""
        try:
            user = pwd.getpwnam(self.owner).pw_uid if self.owner else -1
            group = grp.getgrnam(self.group).gr_gid if self.group else -1
        except KeyError:
            return None
        return user, group

    def _attributes(self, before):
        """What differs, for diff mode; None where nothing does."""
        if before is None:
            return dict(before="absent\n", after="%s\n" % self.state)
        mode = stat.S_IMODE(before.st_mode)
        ids = self._ids()
        same_owner = ids is not None and all(
            want in (-1, have) for want, have in zip(ids, (before.st_uid, before.st_gid))
        )
        if same_owner and self.mode in (None, mode):
            return None
        after = "%04o %s:%s\n" % (mode if self.mode is None else self.mode, self.owner, self.group)
        return dict(before="%04o %d:%d\n" % (mode, before.st_uid, before.st_gid), after=after)

    def _set_attributes(self, path, now):
        ids = self._ids()
        if ids is None:
            raise FilesError(
                "%s: there is no user %s of group %s. Make both first." % (self.path, self.owner, self.group)
            )
        if any(want not in (-1, have) for want, have in zip(ids, (now.st_uid, now.st_gid))):
            os.chown(path, ids[0], ids[1])
        if self.mode is not None:
            os.chmod(path, self.mode)


def seen(path):
    """What is there itself, be it a link; None where nothing is."""
    try:
        return os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise


def read(path):
    with open(path, "rb") as file:
        return file.read()


def shown(content):
    """A file's content as diff mode shows it."""
    if content is None:
        return ""
    return content[:SHOWN_BYTES].decode("utf-8", "replace")
