# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Questions to the node's own LIM, on its Unix socket: who leads, a token for the API, please; or: hand over.

Frames are four bytes of length, big-endian, and JSON. LIM tells by the socket's credentials who asks.
"""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import json
import struct

from ansible_collections.lavalite.cluster.plugins.module_utils._client import connect_unix

MAX_FRAME_BYTES = 4 * 1024 * 1024
ANSWERS = {"hello": "welcome", "who_leads": "leader", "ask_token": "granted", "resign": "bye"}


class LimSocket:
    """One conversation with the LIM on a socket. Raises OSError, or ValueError with a reason.

    with LimSocket(path, timeout_seconds) as lim:
        leader = lim.ask(dict(type="who_leads"))
    """

    def __init__(self, path, timeout_seconds):
        self._socket_path = path
        self._timeout_seconds = timeout_seconds

    def __enter__(self):
        try:
            self._connection = connect_unix(self._socket_path, self._timeout_seconds)
        except OSError as error:
            raise ValueError("%s: %s" % (self._socket_path, error.strerror or error)) from None
        self._stream = self._connection.makefile("rb")
        try:
            self.ask(dict(type="hello", software_version="ansible", cluster="", node="", role="local"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_unused):
        self._stream.close()
        self._connection.close()

    def ask(self, frame):
        """The answer to a frame. ValueError where LIM refuses."""
        payload = json.dumps(frame).encode("utf-8")
        self._connection.sendall(struct.pack(">I", len(payload)) + payload)
        answer = self._read(self._stream)
        if answer.get("type") == "refused":
            raise ValueError("%s: LIM refuses: %s" % (self._socket_path, str(answer.get("message"))[:500]))
        if answer.get("type") != ANSWERS[frame["type"]]:
            raise ValueError("%s: LIM did not answer as expected" % self._socket_path)
        return answer

    def _read(self, stream):
        head = stream.read(4)
        if len(head) < 4:
            raise ValueError("%s: LIM closed the connection" % self._socket_path)
        length = struct.unpack(">I", head)[0]
        if not 0 < length <= MAX_FRAME_BYTES:
            raise ValueError("%s: this is not LIM's socket" % self._socket_path)
        raw = stream.read(length)
        if len(raw) < length:
            raise ValueError("%s: LIM closed the connection" % self._socket_path)
        answer = json.loads(raw.decode("utf-8"))
        if not isinstance(answer, dict):
            raise ValueError("%s: this is not LIM's socket" % self._socket_path)
        return answer


class LeaderSource:
    """Called, it answers with (the leader's address, a token for it). Raises OSError or ValueError with a reason."""

    def __init__(self, socket_path, timeout_seconds):
        self._socket_path = socket_path
        self._timeout_seconds = timeout_seconds

    def __call__(self):
        leader, granted = self.ask(dict(type="who_leads"), dict(type="ask_token", audience="api"))
        return str(leader["api_url"]), str(granted.get("token") or "")

    def ask(self, *frames):
        """An answer for each frame; the first asks who leads. Raises ValueError, also where nobody leads yet."""
        with LimSocket(self._socket_path, self._timeout_seconds) as lim:
            answers = []
            for frame in frames:
                answers.append(lim.ask(frame))
                if not answers[0].get("api_url"):
                    raise ValueError("%s: no leader is known yet" % self._socket_path)
            return answers
