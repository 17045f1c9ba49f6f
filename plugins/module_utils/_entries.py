# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One entry of the definition (a pool, a queue, a logical host), brought to how it should be.

The server compares and decides; here is only which call to make, and its answer cut down to the one entry.
"""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import with_connection
from ansible_collections.lavalite.cluster.plugins.module_utils._client import path_of


def entry_arguments(**options):
    """name, state and spec, and how to reach the API. An option of the same name is taken instead."""
    return with_connection(
        **dict(
            dict(
                name=dict(type="str", required=True),
                state=dict(type="str", choices=["present", "absent"], default="present"),
                spec=dict(type="dict"),
            ),
            **options,
        )
    )


ENTRY_RULES = dict(supports_check_mode=True, required_if=[("state", "present", ("spec",))])


def apply_entry(client, params, check_mode, collection, section, **ask):
    """PUT or DELETE one entry. `collection` is its name in the API's paths, `section` its place in the document.

    `ask` is what a PUT says beside `spec`.
    """
    name = params["name"]
    path = path_of(collection, name)
    query = dict(dry_run="true") if check_mode else None
    if params["state"] == "absent":
        if name not in ((client.get("/v1/definition").body or {}).get(section) or {}):
            return dict(changed=False, diff=dict(before={}, after={}), hosts=[])
        body = client.delete(path, query).body
    else:
        body = client.put(path, dict(ask, spec=params["spec"]), query).body
    diff = dict(
        before=_entry(body, "before", section, name),
        after=_entry(body, "after", section, name),
        before_header="%s %s" % (section, name),
        after_header="%s %s" % (section, name),
    )
    return dict(
        changed=bool(body.get("changed")), version=body.get("version"), diff=diff, hosts=body.get("hosts", [])
    )


def _entry(body, side, section, name):
    entry = ((body.get(side) or {}).get(section) or {}).get(name)
    return {} if entry is None else {name: entry}
