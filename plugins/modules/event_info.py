#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: event_info
short_description: What has changed in a cluster
version_added: "0.1.0"
description:
  - Reads what has changed, from where an earlier run ended or from now on. Changes nothing.
  - It ends when O(limit) events are read, and when O(timeout) has passed.
  - The leader remembers the last ten thousand events of its own time.
author: LavaLite authors (@lavalite)
options:
  since:
    description:
      - The RV(cursor) of an earlier run, V(now), or nothing for all that is remembered.
    type: str
    default: ''
  kind:
    description: Only events of these kinds of things.
    type: list
    elements: str
    choices: [job, task, node, host, definition]
    default: []
  name:
    description:
      - Only events of the thing of this name. A job goes by its number, a task by C(JOB.INDEX).
    type: str
    default: ''
  timeout:
    description:
      - For how long to wait until O(limit) events are read, in seconds. With V(0) nothing is waited for.
    type: int
    default: 0
extends_documentation_fragment:
  - lavalite.cluster.listing
  - lavalite.cluster.connection
  - lavalite.cluster.connection.reads
"""

EXAMPLES = r"""
- name: From here on
  lavalite.cluster.event_info:
    since: now
    unix_socket: /run/lavalite/api.sock
  register: start

- name: The host is being composed
  lavalite.cluster.event_info:
    since: "{{ start.cursor }}"
    kind: [host]
    name: analytics
    limit: 1
    timeout: 60
    unix_socket: /run/lavalite/api.sock
"""

RETURN = r"""
events:
  description: What has changed, in the order in which it did. RV(events[].at) is in seconds since 1970.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: The kind of thing.
      type: str
      returned: success
    name:
      description: Which one.
      type: str
      returned: success
    state:
      description: What it is now.
      type: str
      returned: success
    at:
      description: When it changed.
      type: float
      returned: success
  sample:
    - {kind: node, name: n07, state: drained, at: 1790000000.0}
cursor:
  description: Where the next run goes on.
  returned: success
  type: str
  sample: 0.481-77
missed:
  description:
    - Whether events since O(since) are not remembered any more, as after a change of the leader. List what you follow
      anew then.
  returned: success
  type: bool
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import run
from ansible_collections.lavalite.cluster.plugins.module_utils._client import PAGE_LIMIT
from ansible_collections.lavalite.cluster.plugins.module_utils._listing import (
    demand_limit,
    either,
    listing_arguments,
)

KINDS = ["job", "task", "node", "host", "definition"]
MAX_WAIT_SECONDS = 30.0
"""One call waits no longer, nor longer than half of what a call may take."""


def read(client, params):
    demand_limit(params["limit"])
    deadline = time.monotonic() + params["timeout"]
    longest = min(MAX_WAIT_SECONDS, params["connect_timeout"] / 2)
    result = dict(changed=False, events=[], cursor=params["since"], missed=False)
    while len(result["events"]) < params["limit"]:
        left = max(0.0, deadline - time.monotonic())
        page = page_of(client, params, result, min(left, longest))
        result["events"] += page["items"]
        result["cursor"] = page["cursor"]
        result["missed"] = result["missed"] or bool(page["missed"])
        if not page["items"] and left == 0.0:
            break
    return result


def page_of(client, params, result, wait_seconds):
    query = dict(
        since=result["cursor"],
        kind=either(params["kind"]),
        name=params["name"] or None,
        limit=min(PAGE_LIMIT, params["limit"] - len(result["events"])),
        wait_seconds=round(wait_seconds, 3),
    )
    return client.get("/v1/events/recent", query).body


def main():
    module = AnsibleModule(
        argument_spec=listing_arguments(
            since=dict(type="str", default=""),
            kind=dict(type="list", elements="str", choices=KINDS, default=[]),
            name=dict(type="str", default=""),
            timeout=dict(type="int", default=0),
        ),
        supports_check_mode=True,
    )
    run(module, lambda client: read(client, module.params))


if __name__ == "__main__":
    main()
