# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options that every module shares, and the way from them to a client. See doc_fragments/connection.py."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import os
import traceback

from ansible_collections.lavalite.cluster.plugins.module_utils._client import Client
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError, Fault
from ansible_collections.lavalite.cluster.plugins.module_utils._lim import LeaderSource

SYSTEM_AUTHORITY = "/etc/lavalite/tls/ca.crt"

CONNECTION = dict(
    api=dict(type="list", elements="str", default=[]),
    unix_socket=dict(type="path"),
    lim_socket=dict(type="path"),
    token=dict(type="str", no_log=True),
    token_path=dict(type="path"),
    ca_path=dict(type="path"),
    connect_timeout=dict(type="float", default=30.0),
)


def with_connection(**options):
    """The argument spec of a module: its own options, and how to reach the API."""
    return dict(CONNECTION, **options)


def client_from(options, patience_seconds=None):
    """A Client for a mapping of the shared options. Raises ApiError where they do not make one."""
    urls = list(options.get("api") or [])
    for url in urls:
        if not url.startswith(("http://", "https://")):
            hint = "Write http://HOST:6880 or https://HOST:6880."
            raise ApiError(0, [Fault("bad_input", "%s is no address of an API" % url, "api", hint)])
    if not (urls or options.get("unix_socket") or options.get("lim_socket")):
        hint = "Set api, unix_socket or lim_socket."
        raise ApiError(0, [Fault("bad_input", "nothing says where the API is", "api", hint)])
    timeout_seconds = float(options.get("connect_timeout") or 30.0)
    lim_socket = options.get("lim_socket")
    return Client(
        urls=urls,
        unix_socket=options.get("unix_socket") or "",
        token=_token(options),
        ca_path=options.get("ca_path") or _authority(lim_socket),
        timeout_seconds=timeout_seconds,
        patience_seconds=patience_seconds,
        leader_source=LeaderSource(lim_socket, timeout_seconds) if lim_socket else None,
    )


def run(module, work):
    """`work(client)` answers with the module's result."""
    finish(module, lambda: work(client_from(module.params)))


def finish(module, work):
    """`work()` answers with the module's result. The only place where an error becomes `fail_json`."""
    try:
        result = work()
    except ApiError as error:
        module.fail_json(msg=str(error), code=error.code, errors=[fault.as_dict() for fault in error.faults])
    except OSError as error:
        module.fail_json(msg="%s" % error, code="failed", exception=traceback.format_exc())
    module.exit_json(**result)


def _authority(lim_socket):
    """Where the node's own LIM says who leads, the cluster's authority lies on that node too, if it has one."""
    return SYSTEM_AUTHORITY if lim_socket and os.path.exists(SYSTEM_AUTHORITY) else ""


def _token(options):
    """The token itself, else the environment's, else the file's. Raises ApiError where the file cannot be read."""
    token = options.get("token") or os.environ.get("LAVALITE_TOKEN") or ""
    path = options.get("token_path")
    if token or not path:
        return token.strip()
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        hint = "Write the token there, or set LAVALITE_TOKEN."
        raise ApiError(
            0, [Fault("bad_input", "%s cannot be read: %s" % (path, reason), "token_path", hint)]
        ) from None
