#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: pool_info
short_description: The pools of a cluster
version_added: "0.1.0"
description:
  - Lists pools, with their nodes, what they have, and what of it is free. Changes nothing.
author: LavaLite authors (@lavalite)
extends_documentation_fragment:
  - lavalite.cluster.listing
  - lavalite.cluster.listing.named
  - lavalite.cluster.connection
  - lavalite.cluster.connection.reads
"""

EXAMPLES = r"""
- name: What has the pool of GPUs?
  lavalite.cluster.pool_info:
    name: [gpus]
    unix_socket: /run/lavalite/api.sock
  register: found

- name: Say it
  ansible.builtin.debug:
    msg: "{{ found.pools[0].resources.gpu.free }} thousandths of a GPU are free"
"""

RETURN = r"""
pools:
  description: The pools, in the order of their names.
  returned: success
  type: list
  elements: dict
  sample:
    - name: gpus
      kinds: [gpu]
      nodes: [n07, n08]
      resources: {gpu: {capacity: 8000, committed: 4000, free: 4000}}
more:
  description: Whether there are more than O(limit).
  returned: success
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import run
from ansible_collections.lavalite.cluster.plugins.module_utils._listing import listed, named_listing_arguments


def read(client, params):
    pools, more = listed(client, "pools", params["limit"], names=params["name"])
    return dict(changed=False, pools=pools, more=more)


def main():
    module = AnsibleModule(
        argument_spec=named_listing_arguments(),
        supports_check_mode=True,
    )
    run(module, lambda client: read(client, module.params))


if __name__ == "__main__":
    main()
