#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: logical_host_info
short_description: The logical hosts of a cluster
version_added: "0.1.0"
description:
  - Lists logical hosts, with their state, anchor, parts and circuits. Changes nothing.
author: LavaLite authors (@lavalite)
options:
  state:
    description: Only hosts in one of these states.
    type: list
    elements: str
    choices: [planned, reserved, composing, composed, resizing, draining, released, failed]
    default: []
extends_documentation_fragment:
  - lavalite.cluster.listing
  - lavalite.cluster.listing.named
  - lavalite.cluster.connection
  - lavalite.cluster.connection.reads
"""

EXAMPLES = r"""
- name: Which hosts wait, and for what?
  lavalite.cluster.logical_host_info:
    state: [planned, failed]
    unix_socket: /run/lavalite/api.sock
  register: waiting

- name: Say it
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.reason }}"
  loop: "{{ waiting.hosts }}"
"""

RETURN = r"""
hosts:
  description: The logical hosts, in the order of their names.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: Its name., type: str}
    state: {description: Its state., type: str}
    step:
      description: Where it is while parts are put together or taken apart; empty where it is settled.
      type: str
    reason: {description: Why it is not composed., type: str}
    anchor: {description: The node that its CPU is on., type: str}
    pools: {description: The pools that it takes from., type: list, elements: str}
    parts:
      description: What it is made of. An amount is in the unit of its kind, milli-cores, bytes or bits a second.
      type: list
      elements: dict
    circuits:
      description: The ways to what comes from other nodes, each with the bandwidth that is kept on all its links.
      type: list
      elements: dict
    degraded: {description: The ids of parts that it lost and goes on without., type: list, elements: str}
    executor: {description: V(bare) on its anchor as that is or V(vm)., type: str}
    address: {description: Of a virtual machine., type: str}
    drained: {description: Whether nothing new starts on it., type: bool}
  sample:
    - name: analytics
      state: composed
      step: ""
      anchor: n01
      pools: [flash, general]
      parts:
        - {id: analytics/cpu/n01, kind: cpu, amount: 16000, provider: n01, pool: general}
        - id: analytics/storage/n03
          kind: storage
          amount: 1099511627776
          provider: n03
          pool: flash
          circuit: analytics/circuit/n03
      circuits:
        - id: analytics/circuit/n03
          anchor: n01
          provider: n03
          bits_per_second: 1000000000
          links: [link/n01/r1, link/n03/r1]
      degraded: []
      executor: bare
      address: ""
      drained: false
more:
  description: Whether there are more than O(limit).
  returned: success
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import run
from ansible_collections.lavalite.cluster.plugins.module_utils._listing import either, listed, named_listing_arguments

STATES = ["planned", "reserved", "composing", "composed", "resizing", "draining", "released", "failed"]


def read(client, params):
    hosts, more = listed(client, "hosts", params["limit"], dict(state=either(params["state"])), params["name"])
    return dict(changed=False, hosts=hosts, more=more)


def main():
    module = AnsibleModule(
        argument_spec=named_listing_arguments(
            state=dict(type="list", elements="str", choices=STATES, default=[]),
        ),
        mutually_exclusive=[("name", "state")],
        supports_check_mode=True,
    )
    run(module, lambda client: read(client, module.params))


if __name__ == "__main__":
    main()
