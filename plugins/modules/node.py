#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: node
short_description: "A node: drained or active, and the labels that an operator gives it"
version_added: "0.1.0"
description:
  - Drains a node, so that nothing new is placed on it, and resumes it. What runs there runs on, until O(deadline).
  - Gives labels to a node, by which pools select it, over those that the node tells itself.
  - All of it is kept by the cluster, over changes of the leader as well.
author: LavaLite authors (@lavalite)
options:
  name:
    description: The name of the node.
    type: str
    required: true
  state:
    description:
      - V(drained), where nothing new is placed, or V(active). Without it, neither is changed.
      - Logical hosts that take parts of a drained node keep them.
    type: str
    choices: [active, drained]
  deadline:
    description:
      - How long what runs on a drained node may run on, as V(30m). It counts from when it was first asked for, and
        asking for the same again does not move it.
      - When it is over, tasks of jobs that are rerunnable go back to their queue, at no cost to their retries. All
        others are stopped. They are tried again where they have retries left, and else have failed.
      - V(never) takes a deadline away. Without the option, what was asked for before stays.
    type: str
  reason:
    description: Why it is drained, for whoever looks. Without the option, what was said before stays.
    type: str
  wait:
    description: Whether to wait until nothing runs on the drained node. Not done in check mode.
    type: bool
    default: false
  timeout:
    description: For how long to wait, in seconds. The module fails if work is left then; the node stays drained.
    type: int
    default: 600
  labels:
    description:
      - Labels to give, each with one value or a list of them. V(null) takes away one that was given.
      - The label C(group) cannot be given. It holds the groups of the inventory.
    type: dict
  purge_labels:
    description: Whether labels that were given, and do not stand in O(labels), are taken away.
    type: bool
    default: false
extends_documentation_fragment:
  - lavalite.cluster.connection
  - lavalite.cluster.connection.changes
"""

EXAMPLES = r"""
- name: Free of work in half an hour at most
  lavalite.cluster.node:
    name: "{{ inventory_hostname }}"
    state: drained
    deadline: 30m
    reason: new disk
    wait: true
    timeout: 2000
    unix_socket: /run/lavalite/api.sock
  delegate_to: ctl1

- name: Work again, and in another rack
  lavalite.cluster.node:
    name: n07
    state: active
    labels:
      rack: r2
      disk: [ssd, nvme]
    api: [https://ctl1:6880, https://ctl2:6880]
"""

RETURN = r"""
node:
  description: The node as it is, or in check mode would be.
  returned: success
  type: dict
  sample:
    name: n07
    state: drained
    drain: {reason: new disk, deadline_seconds: 1800, deadline_at: 1790000000.0}
    operator_labels: {rack: [r2]}
    tasks: 3
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils import _amounts
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import run, with_connection
from ansible_collections.lavalite.cluster.plugins.module_utils._client import path_of
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError, Fault
from ansible_collections.lavalite.cluster.plugins.module_utils._waiting import until

NEVER = "never"


def apply(client, params, check_mode):
    name = params["name"]
    drain, labels = drain_query(params), label_change(params)
    dry = dict(dry_run="true") if check_mode else {}
    before = client.get(path_of("nodes", name)).body
    node = dict(before)
    if params["state"] == "drained":
        take_over(node, client.post(path_of("nodes", name, "drain"), None, dict(drain, **dry)), "drain", "state")
    elif params["state"] == "active":
        take_over(node, client.post(path_of("nodes", name, "resume"), None, dry), "drain", "state")
    if labels is not None:
        asked = dict(labels=labels, purge=params["purge_labels"])
        take_over(node, client.put(path_of("nodes", name, "labels"), asked, dry), "operator_labels", "labels")
    changed = any(before.get(field) != node.get(field) for field in ("drain", "operator_labels"))
    if params["wait"] and params["state"] == "drained" and not check_mode:
        node = free_of_work(client, name, params["timeout"])
    return dict(changed=changed, node=node, diff=dict(before=settings(before), after=settings(node)))


def take_over(node, answer, *fields):
    """What a call answers with of a node; a dry run knows nothing of what another one would change."""
    node.update((field, answer.body.get(field)) for field in fields)


def settings(node):
    """What can be set of a node, and stays the same when it is asked for again."""
    drain = node.get("drain")
    if drain:
        drain = dict(reason=drain.get("reason"), deadline_seconds=drain.get("deadline_seconds"))
    return dict(drain=drain, labels=node.get("operator_labels"))


def drain_query(params):
    """The query of a drain: what is not said is left to the server. Raises ApiError."""
    query = dict(reason=params["reason"])
    if params["deadline"] == NEVER:
        query["no_deadline"] = "true"
    elif params["deadline"]:
        try:
            query["deadline_seconds"] = _amounts.seconds(params["deadline"], "deadline")
        except ValueError as error:
            raise ApiError(0, [Fault("bad_input", str(error))]) from None
    return query


def label_change(params):
    """Lists of text by label, or None where no label is to change. Raises ApiError."""
    if params["labels"] is None:
        return {} if params["purge_labels"] else None
    return dict((str(label), label_values(label, values)) for label, values in params["labels"].items())


def label_values(label, values):
    if values is None:
        return None
    values = values if isinstance(values, list) else [values]
    for value in values:
        if isinstance(value, (bool, dict, list)) or value is None:
            hint = "Write text, in quotes where YAML would read it as something else."
            raise ApiError(0, [Fault("bad_input", "%r is no value of a label" % (value,), "labels.%s" % label, hint)])
    return [str(value) for value in values]


def free_of_work(client, name, timeout_seconds):
    """The node, once nothing runs there. Raises ApiError when the time is over."""
    seen = []

    def poll():
        seen[:] = [client.get(path_of("nodes", name)).body]
        return None if seen[0].get("tasks") else seen[0]

    node = until(poll, timeout_seconds)
    if node is None:
        text = "node %s still has %s tasks after %d s" % (name, seen[0].get("tasks"), timeout_seconds)
        hint = "Give a deadline, raise timeout, or see `lavalite jobs` and end what need not run on."
        raise ApiError(0, [Fault("timeout", text, "timeout", hint)])
    return node


def main():
    module = AnsibleModule(
        argument_spec=with_connection(
            name=dict(type="str", required=True),
            state=dict(type="str", choices=["active", "drained"]),
            deadline=dict(type="str"),
            reason=dict(type="str"),
            wait=dict(type="bool", default=False),
            timeout=dict(type="int", default=600),
            labels=dict(type="dict"),
            purge_labels=dict(type="bool", default=False),
        ),
        supports_check_mode=True,
    )
    run(module, lambda client: apply(client, module.params, module.check_mode))


if __name__ == "__main__":
    main()
