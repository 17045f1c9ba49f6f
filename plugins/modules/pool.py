#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: pool
short_description: "A pool: nodes selected by label, and what of them is given out"
version_added: "0.1.0"
description:
  - Brings one pool of the applied definition to how it should be, as it would stand in C(pools.yml).
  - The whole document is applied at once by M(lavalite.cluster.definition); use one or the other for an entry.
author: LavaLite authors (@lavalite)
extends_documentation_fragment:
  - lavalite.cluster.entry
  - lavalite.cluster.connection
  - lavalite.cluster.connection.changes
"""

EXAMPLES = r"""
- name: All GPUs of the first rack, as one pool
  lavalite.cluster.pool:
    name: gpus
    spec:
      nodes: {group: lavalite_gpu, rack: r1}
      kinds: [gpu]
    unix_socket: /run/lavalite/api.sock
"""

RETURN = r"""
version:
  description: The version of the definition. It grows with every change.
  returned: success
  type: int
  sample: 7
hosts:
  description: What every logical host is, or in check mode would be.
  returned: success
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import run
from ansible_collections.lavalite.cluster.plugins.module_utils._entries import (
    ENTRY_RULES,
    apply_entry,
    entry_arguments,
)


def main():
    module = AnsibleModule(argument_spec=entry_arguments(), **ENTRY_RULES)
    run(module, lambda client: apply_entry(client, module.params, module.check_mode, "pools", "pools"))


if __name__ == "__main__":
    main()
