# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A token in a file that only its owner can read: whether it will still do, and how a new one gets there.

What a token says of itself stands in it in plain JSON. It is only read here to see whether it is worth keeping; who
takes it checks its signature.
"""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import base64
import json
import os
import stat
import tempfile

MODE = 0o600
MAX_TOKEN_CHARACTERS = 4096
SIGNATURE_BYTES = 64
_HEADER = "v4.public."


class Kept:
    """What stands in the file: `mode` is None where there is none, `claims` are empty where they cannot be read."""

    def __init__(self, mode, owner, claims):
        self.mode = mode
        self.owner = owner
        self.claims = claims

    def is_private(self):
        """Whether nobody but whoever asks can read it."""
        return self.mode == MODE and self.owner == os.geteuid()

    def will_do(self, audience, epoch, until):
        """Whether it speaks of us, to `audience`, in the leadership of `epoch`, until `until` at least."""
        uid = str(self.claims.get("sub", "")).split(":")[2:3]
        expires_at = self.claims.get("expires_at")
        return (
            uid == [str(os.geteuid())]
            and self.claims.get("aud") == audience
            and self.claims.get("epoch") == epoch
            and isinstance(expires_at, (int, float))
            and expires_at >= until
        )


def look_at(path):
    """What is at `path`. Raises OSError where it cannot be read, or is no plain file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return Kept(None, None, {})
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no plain file")
    with open(path, "rb") as file:
        text = file.read(MAX_TOKEN_CHARACTERS + 1)
    return Kept(stat.S_IMODE(found.st_mode), found.st_uid, claims_of(text.decode("utf-8", "replace").strip()))


def claims_of(token):
    """What a token says; nothing where that cannot be read."""
    body = token[len(_HEADER) :].split(".")[0]
    if not token.startswith(_HEADER) or len(token) > MAX_TOKEN_CHARACTERS:
        return {}
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        claims = json.loads(raw[:-SIGNATURE_BYTES].decode("utf-8"))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) else {}


def write(path, token):
    """Whole or not at all, and never readable by others. Raises OSError."""
    folder = os.path.dirname(path) or "."
    number, beside = tempfile.mkstemp(prefix=".%s." % os.path.basename(path), dir=folder)  # with mode 0600
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
