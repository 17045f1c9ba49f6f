#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: definition
short_description: The whole of pools.yml, applied in one transaction
version_added: "0.1.0"
description:
  - Applies pools, links, logical hosts and queues together. All of it takes effect, or nothing.
  - Every fault of the document is reported at once, each with file, line and field.
  - In diff mode it also says what each logical host is made of, or in check mode would be.
author: LavaLite authors (@lavalite)
options:
  path:
    description:
      - The document, a file on the machine where the module runs. One of O(path) and O(content) is needed.
    type: path
  content:
    description:
      - The document's text.
    type: str
  file:
    description:
      - What the document is called in messages. By default O(path), or V(pools.yml).
    type: str
  purge:
    description:
      - Whether what an earlier document had and this one has not is removed.
        Nothing is removed that is in use, nor anything that the document did not make.
    type: bool
    default: false
  wait:
    description: Whether to wait until all logical hosts are composed.
    type: bool
    default: false
  timeout:
    description: For how long to wait, in seconds.
    type: int
    default: 120
extends_documentation_fragment:
  - lavalite.cluster.connection
  - lavalite.cluster.connection.changes
"""

EXAMPLES = r"""
- name: What the inventory says is what there is
  lavalite.cluster.definition:
    content: "{{ lookup('ansible.builtin.file', lavalite_pools_source, rstrip=false) }}"
    file: "{{ lavalite_pools_source }}"
    unix_socket: /run/lavalite/api.sock
    wait: true
  run_once: true
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
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import run, with_connection
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError, Fault
from ansible_collections.lavalite.cluster.plugins.module_utils._hosts import all_made_of
from ansible_collections.lavalite.cluster.plugins.module_utils._waiting import (
    hosts_settled,
    unsettled_sentence,
    until,
)


def document_of(params):
    """(text, name of the file). Raises ApiError where the file cannot be read."""
    path = params["path"]
    name = params["file"] or path or "pools.yml"
    if params["content"] is not None:
        return params["content"], name
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(), name
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        hint = "The file must be on the machine where the module runs; else give content."
        raise ApiError(0, [Fault("bad_input", "it cannot be read: %s" % reason, hint=hint, file=path)]) from None


def apply(client, params, check_mode, diff_mode=False):
    text, name = document_of(params)
    there = all_made_of(client.items("/v1/hosts")) if diff_mode else {}
    asked = dict(text=text, file=name, purge=params["purge"])
    body = client.put("/v1/definition", asked, dict(dry_run="true") if check_mode else None).body
    hosts = body.get("hosts", [])
    if params["wait"] and not check_mode:
        hosts = wait_for(client, {host.get("name") for host in hosts}, params["timeout"])
    before, after = body.get("before", {}), body.get("after", {})
    if diff_mode:
        # What is not in the document any more and goes only with purge stays as it is.
        stays = there if not params["purge"] else {}
        before, after = dict(before, hosts=there), dict(after, hosts=dict(stays, **all_made_of(hosts)))
    return dict(
        changed=bool(body.get("changed")),
        version=body.get("version"),
        hosts=hosts,
        diff=dict(before=before, after=after, before_header=name, after_header=name),
    )


def wait_for(client, names, timeout_seconds):
    """The hosts of these names once they are composed. Raises ApiError with each that is not in time."""
    wanted = hosts_settled(client, lambda host: host.get("name") in names)
    settled = until(wanted, timeout_seconds)
    hosts = (settled or dict(hosts=[h for h in client.items("/v1/hosts") if h.get("name") in names]))["hosts"]
    late = unsettled_sentence(hosts)
    if late:
        hint = "See `lavalite hosts`, lower what is asked for, or raise timeout."
        raise ApiError(0, [Fault("not_composed", late, "logical_hosts", hint)])
    return hosts


def main():
    module = AnsibleModule(
        argument_spec=with_connection(
            path=dict(type="path"),
            content=dict(type="str"),
            file=dict(type="str"),
            purge=dict(type="bool", default=False),
            wait=dict(type="bool", default=False),
            timeout=dict(type="int", default=120),
        ),
        supports_check_mode=True,
        required_one_of=[("path", "content")],
        mutually_exclusive=[("path", "content")],
    )
    run(module, lambda client: apply(client, module.params, module.check_mode, module._diff))


if __name__ == "__main__":
    main()
