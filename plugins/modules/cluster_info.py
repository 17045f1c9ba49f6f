#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: cluster_info
short_description: What a cluster is and has
version_added: "0.1.0"
description:
  - Reads the status of the cluster and, as asked, its nodes, pools, logical hosts and queues. Changes nothing.
author: LavaLite authors (@lavalite)
options:
  gather:
    description: Which collections to read, besides the status.
    type: list
    elements: str
    choices: [nodes, pools, hosts, queues, definition]
    default: [nodes, pools, hosts, queues]
extends_documentation_fragment:
  - lavalite.cluster.connection
  - lavalite.cluster.connection.reads
"""

EXAMPLES = r"""
- name: Who leads?
  lavalite.cluster.cluster_info:
    gather: []
    unix_socket: /run/lavalite/api.sock
  register: cluster

- name: Say it
  ansible.builtin.debug:
    msg: "{{ cluster.status.node }} leads {{ cluster.status.cluster }}"
"""

RETURN = r"""
status:
  description: The cluster's name, the leading node, the epoch, the version, and counts by state.
  returned: success
  type: dict
nodes:
  description: The nodes, with their state, labels and what they offer.
  returned: when gathered
  type: list
  elements: dict
pools:
  description: The pools, with what they have and what of it is free.
  returned: when gathered
  type: list
  elements: dict
hosts:
  description: The logical hosts, with their state, anchor and parts.
  returned: when gathered
  type: list
  elements: dict
queues:
  description: The queues.
  returned: when gathered
  type: list
  elements: dict
definition:
  description: The applied document.
  returned: when gathered
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import run, with_connection
from ansible_collections.lavalite.cluster.plugins.module_utils._client import path_of

COLLECTIONS = ("nodes", "pools", "hosts", "queues")


def read(client, gather):
    result = dict(changed=False, status=client.get("/v1/status").body)
    for name in COLLECTIONS:
        if name in gather:
            result[name] = list(client.items(path_of(name)))
    if "definition" in gather:
        result["definition"] = client.get("/v1/definition").body
    return result


def main():
    gather = dict(type="list", elements="str", choices=list(COLLECTIONS) + ["definition"], default=list(COLLECTIONS))
    module = AnsibleModule(argument_spec=with_connection(gather=gather), supports_check_mode=True)
    run(module, lambda client: read(client, module.params["gather"]))


if __name__ == "__main__":
    main()
