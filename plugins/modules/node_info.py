#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: node_info
short_description: The nodes of a cluster
version_added: "0.1.0"
description:
  - Lists nodes, with their state, labels, drain, and what of each is free. Changes nothing.
author: LavaLite authors (@lavalite)
options:
  select:
    description:
      - >-
        Only nodes that this selects, as a pool in C(pools.yml) would: V({rack: r1}) goes by labels, V(n[01:04]) by
        names.
    type: raw
  state:
    description: Only nodes in one of these states.
    type: list
    elements: str
    choices: [ready, drained, silent, unknown, lost]
    default: []
extends_documentation_fragment:
  - lavalite.cluster.listing
  - lavalite.cluster.listing.named
  - lavalite.cluster.connection
  - lavalite.cluster.connection.reads
"""

EXAMPLES = r"""
- name: Which nodes of the rack are drained?
  lavalite.cluster.node_info:
    select: {rack: r1}
    state: [drained]
    unix_socket: /run/lavalite/api.sock
  register: drained

- name: Say why
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.drain.reason }}"
  loop: "{{ drained.nodes }}"
"""

RETURN = r"""
nodes:
  description: The nodes, in the order of their names.
  returned: success
  type: list
  elements: dict
  sample:
    - name: n07
      state: drained
      labels: {rack: [r1], group: [lavalite_nodes]}
      operator_labels: {}
      drain: {reason: new disk, deadline_seconds: 1800, deadline_at: 1790000000.0}
      tasks: 3
more:
  description: Whether there are more than O(limit).
  returned: success
  type: bool
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import run
from ansible_collections.lavalite.cluster.plugins.module_utils._listing import either, listed, named_listing_arguments

STATES = ["ready", "drained", "silent", "unknown", "lost"]


def read(client, params):
    query = dict(state=either(params["state"]), selector=selector_text(params["select"]))
    nodes, more = listed(client, "nodes", params["limit"], query, params["name"])
    return dict(changed=False, nodes=nodes, more=more)


def selector_text(select):
    """As the API takes it: the server alone knows what it selects."""
    return select if select is None or isinstance(select, str) else json.dumps(select)


def main():
    module = AnsibleModule(
        argument_spec=named_listing_arguments(
            select=dict(type="raw"),
            state=dict(type="list", elements="str", choices=STATES, default=[]),
        ),
        mutually_exclusive=[("name", "select"), ("name", "state")],
        supports_check_mode=True,
    )
    run(module, lambda client: read(client, module.params))


if __name__ == "__main__":
    main()
