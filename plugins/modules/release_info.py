#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: release_info
short_description: Which of LavaLite's releases a node has and uses
version_added: "0.1.0"
description:
  - Looks at what M(lavalite.cluster.release) keeps. Changes nothing, and needs no daemon.
author: LavaLite authors (@lavalite)
options:
  root:
    description: The folder with C(current), C(previous) and C(releases/).
    type: path
    default: /opt/lavalite
extends_documentation_fragment:
  - lavalite.cluster.connection.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: What is there?
  lavalite.cluster.release_info:
  register: node

- name: Say it
  ansible.builtin.debug:
    msg: "{{ node.current }}; {{ node.behind | join(', ') }} still run out of another"
"""

RETURN = r"""
current:
  description: The release that the daemons start from. Empty where there is none.
  returned: success
  type: str
previous:
  description: The release before. Empty where there is none.
  returned: success
  type: str
releases:
  description: Those that are whole, the oldest first.
  returned: success
  type: list
  elements: dict
  sample:
    - name: 0.2.0+1a2b3c4d-node-py311
      version: 0.2.0+1a2b3c4d
      part: node
      python: "3.11"
      machine: x86_64
      protocol: [1, 1]
behind:
  description: Programs of LavaLite that run out of another release than RV(current), and so want a restart.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils import _release


def look(root):
    place = _release.Releases(root)
    facts = [place.facts(name) for name in place.names()]
    return dict(
        changed=False,
        current=place.linked("current"),
        previous=place.way_back(),
        releases=[_release.described(one) for one in facts if one],
        behind=_release.behind(_release.used(root), place.linked("current")),
    )


def main():
    module = AnsibleModule(
        argument_spec=dict(root=dict(type="path", default="/opt/lavalite")), supports_check_mode=True
    )
    try:
        result = look(module.params["root"])
    except OSError as error:
        module.fail_json(msg="root: %s: %s." % (error.filename or module.params["root"], error.strerror or error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
