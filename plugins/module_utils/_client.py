# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one seam between everything in this collection and `/v1`: the standard library only.

A call goes to the first endpoint that answers: the Unix socket, where one was named, then the addresses in the order
in which they were written. A backup's answer (307, or 503) leads on to the leader. Every call of `/v1` may be
repeated (writes are `PUT` by name, `DELETE` by name, or a `POST` with a key of ours): a lost answer is asked again.
The connection of the last call is kept for the next one.
"""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import http.client
import json
import os
import socket
import ssl
import time
from urllib.parse import quote, urlencode, urlsplit

from ansible_collections.lavalite.cluster.plugins.module_utils._errors import (
    ApiError,
    Fault,
    UnreachableError,
    faults_of,
)

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_REDIRECTS = 5
MAX_PAGES = 100000
PAGE_LIMIT = 1000
RETRY_PAUSE_SECONDS = 0.5
ELSEWHERE = (502, 503, 504)
"""Answers of one that cannot serve now: another endpoint, or a later try, may."""
TOO_MUCH = 429
"""The answer of one that takes no more now, and says when to come again."""


class Answer:
    """What `/v1` said. `body` is decoded JSON, or None where there is none; `raw` the bytes as they came."""

    def __init__(self, status, headers, raw):
        self.status = status
        self.etag = headers.get("etag", "")
        self.location = headers.get("location", "")
        self.retry_after = headers.get("retry-after", "")
        self.retry_after_seconds = float(self.retry_after) if self.retry_after.isdigit() else float("inf")
        self.content_type = headers.get("content-type", "")
        self.raw = raw
        self._decoded = None

    @property
    def body(self):
        if not self.raw:
            return None
        try:
            if self._decoded is None:
                self._decoded = json.loads(self.raw.decode("utf-8"))
            return self._decoded
        except ValueError:
            raise ApiError(
                self.status,
                [Fault("bad_answer", "the answer is not JSON", hint="Is this address the API of LavaLite?")],
            ) from None


class Client:
    """Calls of `/v1`. `leader_source` is asked for (addresses, token) when nothing else is configured or answers.

    `patience_seconds` is for how long an unreachable or leaderless cluster is asked again; with 0 each endpoint is
    tried once.
    """

    def __init__(
        self,
        urls=(),
        unix_socket="",
        token="",
        ca_path="",
        timeout_seconds=30.0,
        patience_seconds=None,
        leader_source=None,
    ):
        self._urls = [url.rstrip("/") for url in urls]
        self._unix_socket = unix_socket
        self._token = token
        self._ca_path = ca_path
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = timeout_seconds if patience_seconds is None else patience_seconds
        self._leader_source = leader_source
        self._kept = ("", None)

    def get(self, path, query=None, etag=""):
        """With `etag`, an answer of status 304 means that nothing has changed."""
        return self._call("GET", path, query, None, {"If-None-Match": etag} if etag else {})

    def put(self, path, body, query=None):
        return self._call("PUT", path, query, body, {})

    def post(self, path, body, query=None):
        return self._call("POST", path, query, body, {})

    def delete(self, path, query=None):
        return self._call("DELETE", path, query, None, {})

    def find(self, path):
        """The body at `path`, or None where there is no such thing."""
        try:
            return self.get(path).body
        except ApiError as error:
            if error.status == 404 and error.code != "no_such_path":
                return None
            raise

    def items(self, path, query=None):
        """All items of a collection, page by page."""
        for page in self.pages(path, query):
            yield from (page.body or {}).get("items", ())

    def pages(self, path, query=None, etag=""):
        """The answers that a collection comes in. With `etag`, one of status 304 and no other if nothing changed."""
        asked = dict(dict(limit=PAGE_LIMIT), **(query or {}))
        for _page in range(MAX_PAGES):
            page = self.get(path, asked, etag)
            yield page
            cursor = (page.body or {}).get("next_cursor")
            if not cursor:
                return
            asked["cursor"], etag = cursor, ""

    def _call(self, method, path, query, body, headers):
        """Ask each endpoint until one serves. Raises ApiError with what was wrong, UnreachableError if none did."""
        deadline = time.monotonic() + self._patience_seconds
        while True:
            refusals, pause_seconds = [], RETRY_PAUSE_SECONDS
            for endpoint, token in self._endpoints(refusals):
                try:
                    answer = self._follow(endpoint, token, method, _target(path, query), body, headers)
                except (OSError, http.client.HTTPException) as error:
                    refusals.append("%s: %s" % (endpoint, _reason(error)))
                    continue
                if answer.status in ELSEWHERE:
                    refusals.append("%s: %s" % (endpoint, faults_of(answer)[0].sentence()))
                    continue
                if answer.status == TOO_MUCH and time.monotonic() + answer.retry_after_seconds < deadline:
                    pause_seconds = answer.retry_after_seconds
                    break
                if answer.status >= 400:
                    raise ApiError(answer.status, faults_of(answer))
                return answer
            if time.monotonic() >= deadline:
                raise UnreachableError(refusals)
            time.sleep(pause_seconds)

    def _endpoints(self, refusals):
        """(endpoint, token) in the order to try; the LIM's word is taken anew each time, for leaders change."""
        if self._unix_socket:
            yield "unix:" + self._unix_socket, self._token
        if self._leader_source:
            try:
                url, token = self._leader_source()
            except (OSError, ValueError) as error:
                refusals.append(_reason(error))
            else:
                yield url.rstrip("/"), self._token or token
        for url in self._urls:
            yield url, self._token

    def _follow(self, endpoint, token, method, target, body, headers):
        """One call, and on to where a backup points. Encryption is never given up on the way."""
        for _hop in range(MAX_REDIRECTS):
            answer = self._once(endpoint, token, method, target, body, headers)
            if answer.status not in (307, 308):
                return answer
            onward = urlsplit(answer.location)
            if onward.scheme not in ("http", "https") or not onward.netloc:
                raise OSError("it points to %r as the leader, which is no address" % answer.location[:200])
            if endpoint.startswith("https:") and onward.scheme != "https":
                raise OSError("it points to a leader without TLS, at %s" % onward.netloc)
            endpoint = "%s://%s" % (onward.scheme, onward.netloc)
        raise OSError("more than %d endpoints in a row point to another one as the leader" % MAX_REDIRECTS)

    def _once(self, endpoint, token, method, target, body, headers):
        sent = dict(headers, Accept="application/json")
        if token:
            sent["Authorization"] = "Bearer " + token
        payload = None
        if body is not None:
            payload = json.dumps(body).encode("utf-8")
            sent["Content-Type"] = "application/json"
        (kept_for, connection), self._kept = self._kept, ("", None)
        if connection is not None and kept_for == endpoint:
            try:
                return self._ask(endpoint, connection, method, target, payload, sent)
            except _CLOSED:
                pass  # it was closed while nobody asked anything: that says nothing about the endpoint
        elif connection is not None:
            connection.close()
        return self._ask(endpoint, self._connection(endpoint), method, target, payload, sent)

    def _ask(self, endpoint, connection, method, target, payload, headers):
        """One question on one connection, which is kept if the answer came whole."""
        whole = False
        try:
            connection.request(method, target, body=payload, headers=headers)
            response = connection.getresponse()
            raw = response.read(MAX_BODY_BYTES + 1)
            if len(raw) > MAX_BODY_BYTES:
                raise OSError("the answer is longer than %d bytes" % MAX_BODY_BYTES)
            whole = not response.will_close
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, raw)
        finally:
            if whole:
                self._kept = (endpoint, connection)
            else:
                connection.close()

    def _connection(self, endpoint):
        if endpoint.startswith("unix:"):
            return _UnixConnection(endpoint[len("unix:") :], self._timeout_seconds)
        parts = urlsplit(endpoint)
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self._ca_path or None)
            return http.client.HTTPSConnection(
                parts.hostname, parts.port or 443, timeout=self._timeout_seconds, context=context
            )
        return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=self._timeout_seconds)


_CLOSED = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError, http.client.CannotSendRequest)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout_seconds):
        super(_UnixConnection, self).__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self):
        self.sock = connect_unix(self._path, self.timeout)


def connect_unix(path, timeout_seconds):
    """A connected stream socket. A path of more than the 107 bytes that the kernel takes is reached by its folder."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_seconds)
    folder = None
    try:
        if len(os.fsencode(path)) > 107:
            folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
            path = "/proc/self/fd/%d/%s" % (folder, os.path.basename(path))
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    finally:
        if folder is not None:
            os.close(folder)
    return connection


def path_of(*names):
    """`/v1/hosts/trainer-1` of ("hosts", "trainer-1"); a name cannot leave its place."""
    return "/v1/" + "/".join(quote(str(name), safe="") for name in names)


def _target(path, query):
    pairs = [(k, v) for k, v in sorted((query or {}).items()) if v is not None]
    return path + ("?" + urlencode(pairs) if pairs else "")


def _reason(error):
    return getattr(error, "strerror", None) or str(error) or error.__class__.__name__
