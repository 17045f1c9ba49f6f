#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: job_info
short_description: The jobs of a cluster
version_added: "0.1.0"
description:
  - Lists jobs, by their numbers or by what they have in common, and as asked their tasks. Changes nothing.
author: LavaLite authors (@lavalite)
options:
  id:
    description: Only these jobs, by their numbers. One that is not there is left out.
    type: list
    elements: int
    default: []
  name:
    description: Only jobs of this name.
    type: str
  user:
    description: Only jobs of this user.
    type: str
  queue:
    description: Only jobs of this queue.
    type: str
  host:
    description: Only jobs that run on this logical host.
    type: str
  state:
    description: Only jobs in one of these states.
    type: list
    elements: str
    choices: [pending, committed, running, suspended, succeeded, failed, cancelled, unknown]
    default: []
  tasks:
    description: Whether to return the tasks of these jobs as well, at most O(limit) of them in all.
    type: bool
    default: false
extends_documentation_fragment:
  - lavalite.cluster.listing
  - lavalite.cluster.connection
  - lavalite.cluster.connection.reads
"""

EXAMPLES = r"""
- name: What of tonight's work has failed?
  lavalite.cluster.job_info:
    name: nightly
    state: [failed]
    tasks: true
    unix_socket: /run/lavalite/api.sock
  register: found

- name: Say where
  ansible.builtin.debug:
    msg: "job {{ item.job }} task {{ item.index }} on {{ item.node }}: {{ item.reason }}"
  loop: "{{ found.tasks | selectattr('state', 'equalto', 'failed') }}"
"""

RETURN = r"""
jobs:
  description: The jobs, in the order of their numbers.
  returned: success
  type: list
  elements: dict
  sample:
    - id: 4711
      name: nightly
      user: ann
      state: failed
      tasks: 8
      counts: {failed: 1, succeeded: 7}
tasks:
  description: The tasks of these jobs.
  returned: with O(tasks=true)
  type: list
  elements: dict
  sample:
    - job: 4711
      index: 3
      state: failed
      node: n07
      exit_code: 2
      reason: exit
      preemptions: 0
more_tasks:
  description: Whether there are more tasks than O(limit).
  returned: with O(tasks=true)
  type: bool
more:
  description: Whether there are more than O(limit).
  returned: success
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import run
from ansible_collections.lavalite.cluster.plugins.module_utils._client import path_of
from ansible_collections.lavalite.cluster.plugins.module_utils._listing import (
    either,
    first_of,
    listed,
    listing_arguments,
)

STATES = ["pending", "committed", "running", "suspended", "succeeded", "failed", "cancelled", "unknown"]
FILTERS = ("name", "user", "queue", "host")


def read(client, params):
    query = dict((name, params[name]) for name in FILTERS)
    query["state"] = either(params["state"])
    jobs, more = listed(client, "jobs", params["limit"], query, params["id"])
    result = dict(changed=False, jobs=jobs, more=more)
    if params["tasks"]:
        tasks = (task for job in jobs for task in client.items(path_of("jobs", job["id"], "tasks")))
        result["tasks"], result["more_tasks"] = first_of(tasks, params["limit"])
    return result


def main():
    options = dict((name, dict(type="str")) for name in FILTERS)
    module = AnsibleModule(
        argument_spec=listing_arguments(
            id=dict(type="list", elements="int", default=[]),
            state=dict(type="list", elements="str", choices=STATES, default=[]),
            tasks=dict(type="bool", default=False),
            **options,
        ),
        mutually_exclusive=[("id", name) for name in FILTERS + ("state",)],
        supports_check_mode=True,
    )
    run(module, lambda client: read(client, module.params))


if __name__ == "__main__":
    main()
