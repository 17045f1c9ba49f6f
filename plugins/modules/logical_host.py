#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: logical_host
short_description: A logical host, composed of CPU, memory, GPU, storage and network from pools
version_added: "0.1.0"
description:
  - Brings one logical host of the applied definition to how it should be, as it would stand in C(pools.yml).
  - With O(spec) of V(count) more than one, the hosts are called NAME-1, NAME-2 and so on.
author: LavaLite authors (@lavalite)
options:
  wait:
    description: Whether to wait until the host is composed, or with O(state=absent) gone.
    type: bool
    default: true
  timeout:
    description: For how long to wait, in seconds.
    type: int
    default: 120
extends_documentation_fragment:
  - lavalite.cluster.entry
  - lavalite.cluster.connection
  - lavalite.cluster.connection.changes
"""

EXAMPLES = r"""
- name: A host with sixteen cores, whose memory may in part be far
  lavalite.cluster.logical_host:
    name: analytics
    spec:
      cpu: 16
      memory: 256GiB
      far: {memory: 50%}
    unix_socket: /run/lavalite/api.sock

- name: No such host any more
  lavalite.cluster.logical_host:
    name: analytics
    state: absent
    api: [https://ctl1:6880, https://ctl2:6880]
"""

RETURN = r"""
version:
  description: The version of the definition. It grows with every change.
  returned: success
  type: int
  sample: 7
hosts:
  description: What the hosts of this entry are, or in check mode would be.
  returned: success
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import run
from ansible_collections.lavalite.cluster.plugins.module_utils._client import path_of
from ansible_collections.lavalite.cluster.plugins.module_utils._entries import (
    ENTRY_RULES,
    apply_entry,
    entry_arguments,
)
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError, Fault
from ansible_collections.lavalite.cluster.plugins.module_utils._waiting import (
    hosts_settled,
    unsettled_sentence,
    until,
)


def host_names(name, spec):
    """The hosts that an entry stands for: itself, or as many as `count` says."""
    count = str((spec or {}).get("count", ""))
    return {"%s-%d" % (name, number) for number in range(1, int(count) + 1)} if count.isdigit() else {name}


def apply(client, params, check_mode):
    result = apply_entry(client, params, check_mode, "hosts", "logical_hosts")
    spec = params["spec"] if params["state"] == "present" else result["diff"]["before"].get(params["name"])
    names = host_names(params["name"], spec)
    result["hosts"] = [host for host in result["hosts"] if host.get("name") in names]
    if check_mode or not params["wait"]:
        return result
    if params["state"] == "absent":
        late = removal_sentence(client, names if result["changed"] else (), params["timeout"])
    else:
        settled = until(hosts_settled(client, lambda host: host.get("name") in names), params["timeout"])
        result["hosts"] = (settled or {}).get("hosts", result["hosts"])
        late = unsettled_sentence(result["hosts"])
    if late:
        hint = "See `lavalite hosts`, lower what it asks for, or raise timeout."
        raise ApiError(0, [Fault("not_composed", late, "logical_hosts." + params["name"], hint)])
    return result


def removal_sentence(client, names, timeout_seconds):
    """Which of the hosts are still there when the time is over; nothing when all are gone."""
    gone = until(lambda: all(client.find(path_of("hosts", name)) is None for name in names), timeout_seconds)
    return "" if gone else "%s: still being taken apart" % ", ".join(sorted(names))


def main():
    options = dict(wait=dict(type="bool", default=True), timeout=dict(type="int", default=120))
    module = AnsibleModule(argument_spec=entry_arguments(**options), **ENTRY_RULES)
    run(module, lambda client: apply(client, module.params, module.check_mode))


if __name__ == "__main__":
    main()
