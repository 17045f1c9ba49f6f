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
  - A host that there is grows or shrinks, while work runs on it.
  - With O(spec) of V(count) more than one, the hosts are called NAME-1, NAME-2 and so on.
  - In diff mode it also says what the host is made of, or in check mode would be, with the circuits to other nodes.
author: LavaLite authors (@lavalite)
options:
  name:
    description: The name of the entry. With O(state=drained) and O(state=active), a single host of one may be named.
    type: str
    required: true
  state:
    description:
      - V(present) is as O(spec) says. V(resized) is the same for a host that there is, and fails where there is none.
      - V(reserved) is the same, but what the host would take is only held for it, for O(reserve_seconds), and nothing
        is done yet. V(present) composes it later. A host that is composed already stays so.
      - V(drained) takes no new work; what runs on it runs on. V(active) takes work again.
      - V(absent) is taken apart. What is in use is not removed, and the module fails.
    type: str
    choices: [present, resized, reserved, drained, active, absent]
    default: present
  spec:
    description: The entry as it would stand in C(pools.yml). Required with O(state=present), O(state=resized) and
      O(state=reserved).
    type: dict
  reserve_seconds:
    description:
      - For how long O(state=reserved) holds it, in seconds from each such task on. Then it is given back.
    type: int
    default: 3600
  wait:
    description:
      - Whether to wait until the host is composed, with O(state=reserved) held, with O(state=absent) gone, or with
        O(state=drained) without work.
    type: bool
    default: true
  timeout:
    description: For how long to wait, in seconds.
    type: int
    default: 120
extends_documentation_fragment:
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
      far: {memory: 50%, circuit: 10Gbit/s}
      storage: {size: 2TiB, pool: flash}
    unix_socket: /run/lavalite/api.sock

- name: More disk, while work runs on it
  lavalite.cluster.logical_host:
    name: analytics
    state: resized
    spec:
      cpu: 16
      memory: 256GiB
      far: {memory: 50%, circuit: 10Gbit/s}
      storage: {size: 4TiB, pool: flash}
    unix_socket: /run/lavalite/api.sock

- name: What it would take is held for it until the maintenance is over
  lavalite.cluster.logical_host:
    name: nightly
    state: reserved
    reserve_seconds: 7200
    spec: {cpu: 32, memory: 128GiB}
    unix_socket: /run/lavalite/api.sock

- name: Nothing new starts on it, and what runs has ended
  lavalite.cluster.logical_host:
    name: analytics
    state: drained
    timeout: 3600
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
  returned: when O(state) is V(present), V(resized), V(reserved) or V(absent)
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
from ansible_collections.lavalite.cluster.plugins.module_utils._entries import apply_entry, entry_arguments
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError, Fault
from ansible_collections.lavalite.cluster.plugins.module_utils._hosts import host_names, made_of
from ansible_collections.lavalite.cluster.plugins.module_utils._waiting import (
    hosts_settled,
    unsettled_sentence,
    until,
)

STATES = ["present", "resized", "reserved", "drained", "active", "absent"]
CALLS = dict(drained="drain", active="resume")
RESERVED = "reserved"
SPELLED = [("state", state, ("spec",)) for state in ("present", "resized", RESERVED)]


def apply(client, params, check_mode, diff_mode=False):
    if params["state"] in CALLS:
        return take_work(client, params, check_mode)
    if params["state"] == "resized":
        demand_entry(client, params["name"])
        params = dict(params, state="present")
    there = list(client.items("/v1/hosts"))
    ask = dict(reserve_seconds=params["reserve_seconds"]) if params["state"] == RESERVED else {}
    result = apply_entry(client, params, check_mode, "hosts", "logical_hosts", **ask)
    before = result["diff"]["before"].get(params["name"])
    names = host_names(params["name"], before if params["state"] == "absent" else params["spec"])
    result["hosts"] = [host for host in result["hosts"] if host.get("name") in names]
    held = {host["name"] for host in there if host["name"] in names and host.get("state") == RESERVED}
    if params["state"] == "present" and held:
        result["changed"] = True
    elif params["state"] == RESERVED:
        composed = {host["name"] for host in there if host.get("parts")}
        result["changed"] = result["changed"] or not names <= held | composed
    if params["wait"] and not check_mode:
        wait_for(client, params, names, result)
    if diff_mode:
        tell(result["diff"]["before"], there, names | host_names(params["name"], before))
        tell(result["diff"]["after"], result["hosts"], names)
    return result


def demand_entry(client, name):
    """Raises ApiError where the definition has no such logical host."""
    if name not in ((client.get("/v1/definition").body or {}).get("logical_hosts") or {}):
        hint = "Write state: present to have it made, or correct name (see `lavalite hosts`)."
        raise ApiError(0, [Fault("unknown_name", "there is no logical host %s to resize" % name, "name", hint)])


def tell(side, hosts, names):
    """Into one side of the diff: what each of these hosts is made of."""
    side.update(("%s has" % host["name"], made_of(host)) for host in hosts if host.get("name") in names)


def wait_for(client, params, names, result):
    """Until the hosts are composed, or gone. Raises ApiError when the time is over."""
    if params["state"] == "absent":
        late = removal_sentence(client, names if result["changed"] else (), params["timeout"])
    elif params["state"] == RESERVED:
        late = unheld_sentence(client, names, params["timeout"], result)
    else:
        settled = until(hosts_settled(client, lambda host: host.get("name") in names), params["timeout"])
        result["hosts"] = (settled or {}).get("hosts", result["hosts"])
        late = unsettled_sentence(result["hosts"])
    if late:
        hint = "See `lavalite hosts`, lower what it asks for, or raise timeout."
        raise ApiError(0, [Fault("not_composed", late, "logical_hosts." + params["name"], hint)])


def unheld_sentence(client, names, timeout_seconds, result):
    """Which of the hosts hold nothing yet when the time is over, and why; nothing when all do."""

    def poll():
        result["hosts"] = [host for host in client.items("/v1/hosts") if host.get("name") in names]
        return len(result["hosts"]) == len(names) and all(host.get("parts") for host in result["hosts"])

    if until(poll, timeout_seconds):
        return ""
    return unsettled_sentence([host for host in result["hosts"] if not host.get("parts")])


def removal_sentence(client, names, timeout_seconds):
    """Which of the hosts are still there when the time is over; nothing when all are gone."""
    gone = until(lambda: all(client.find(path_of("hosts", name)) is None for name in names), timeout_seconds)
    return "" if gone else "%s: still being taken apart" % ", ".join(sorted(names))


def take_work(client, params, check_mode):
    """Hosts take no new work, or take it again. Raises ApiError, also where there is no such host."""
    entries = (client.get("/v1/definition").body or {}).get("logical_hosts") or {}
    names = sorted(host_names(params["name"], entries.get(params["name"])))
    drained = params["state"] == "drained"
    hosts = [client.get(path_of("hosts", name)).body for name in names]
    before = dict((host["name"], dict(drained=bool(host.get("drained")))) for host in hosts)
    after = dict((name, dict(drained=drained)) for name in names)
    if not check_mode:
        for name in names:
            if before[name] != after[name]:
                client.post(path_of("hosts", name, CALLS[params["state"]]), None)
        hosts = [client.get(path_of("hosts", name)).body for name in names]
        if drained and params["wait"]:
            hosts = free_of_work(client, names, params["timeout"])
    return dict(changed=before != after, hosts=hosts, diff=dict(before=before, after=after))


def free_of_work(client, names, timeout_seconds):
    """The hosts, once no job holds anything of them. Raises ApiError when the time is over."""
    seen = []

    def poll():
        seen[:] = [client.get(path_of("hosts", name)).body for name in names]
        return None if any(map(in_use, seen)) else list(seen)

    hosts = until(poll, timeout_seconds)
    if hosts is None:
        busy = ", ".join(host["name"] for host in seen if in_use(host))
        text = "%s: jobs still run there after %d s" % (busy, timeout_seconds)
        hint = "Raise timeout, or see `lavalite jobs` and end what need not run on."
        raise ApiError(0, [Fault("timeout", text, "timeout", hint)])
    return hosts


def in_use(host):
    return any(amounts.get("committed") for amounts in (host.get("resources") or {}).values())


def main():
    module = AnsibleModule(
        argument_spec=entry_arguments(
            state=dict(type="str", choices=STATES, default="present"),
            reserve_seconds=dict(type="int", default=3600),
            wait=dict(type="bool", default=True),
            timeout=dict(type="int", default=120),
        ),
        supports_check_mode=True,
        required_if=SPELLED,
    )
    run(module, lambda client: apply(client, module.params, module.check_mode, module._diff))


if __name__ == "__main__":
    main()
