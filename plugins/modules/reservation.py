#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: reservation
short_description: "A reservation: parts of some nodes, kept for some users for a time"
version_added: "0.1.0"
description:
  - Keeps amounts on a number of nodes, from a start on and for a duration. Jobs that name the reservation run in it.
    Other jobs may use what is kept only if their walltime ends before the start.
  - What cannot be had beside all that is committed or kept at that time is refused, with the reasons.
  - A reservation is not changed. One that is there as it is asked for is left as it is, one that differs is an error,
    and one that is over is made anew.
author: LavaLite authors (@lavalite)
options:
  name:
    description: What to call it. Jobs name it by the option O(lavalite.cluster.job#module:reservation).
    type: str
    required: true
  state:
    description: Whether it is to be there. What runs in a reservation that is ended runs on.
    type: str
    choices: [present, absent]
    default: present
  duration:
    description: For how long, as V(2h). Needed to make one.
    type: str
  start:
    description:
      - From when on, as V(2026-12-24T08:00:00+01:00). Without it, from now on.
    type: str
  cpu:
    description: Cores on each node, as V(4).
    type: str
  memory:
    description: Memory on each node, as V(16GiB).
    type: str
  gpu:
    description: Whole GPUs on each node.
    type: str
  storage:
    description: Local storage on each node, as V(1TiB).
    type: str
  nodes:
    description: On how many nodes.
    type: int
    default: 1
  pool:
    description: Only nodes of this pool.
    type: str
  users:
    description: Who may use it, beside whoever makes it.
    type: list
    elements: str
    default: []
  every:
    description:
      - It recurs so often, at the same time of day by the clock of O(zone).
      - One that recurs shows its present or next time. What keeps it from being had at any of its times refuses it.
    type: str
    choices: [day, weekday, week]
  zone:
    description: By whose clock it recurs, as V(Europe/Berlin). Without it, by UTC.
    type: str
  until:
    description: It recurs before then, as V(2027-01-31T00:00:00+01:00). Without it, for a year, which is the most.
    type: str
  timeout:
    description: It ends early when it is unused for so long after its start, as V(15m).
    type: str
extends_documentation_fragment:
  - lavalite.cluster.connection
  - lavalite.cluster.connection.changes
"""

EXAMPLES = r"""
- name: Two nodes with four GPUs each, for tomorrow's course
  lavalite.cluster.reservation:
    name: course
    nodes: 2
    gpu: 4
    cpu: 16
    pool: gpus
    start: "2026-12-24T08:00:00+01:00"
    duration: 4h
    timeout: 30m
    users: [ada, bob]
    unix_socket: /run/lavalite/api.sock

- name: A node for those on call, each working day at nine
  lavalite.cluster.reservation:
    name: on-call
    cpu: 8
    start: "2026-12-07T09:00:00+01:00"
    duration: 8h
    every: weekday
    zone: Europe/Berlin
    unix_socket: /run/lavalite/api.sock

- name: It is over
  lavalite.cluster.reservation:
    name: course
    state: absent
    unix_socket: /run/lavalite/api.sock
"""

RETURN = r"""
reservation:
  description: What it is, in check mode would be, or was before it ended. Times are seconds since 1970.
  returned: when it is or was there
  type: dict
  sample:
    name: course
    state: planned
    amounts: {cpu: 16000, gpu: 4000}
    nodes: [n07, n08]
    start: 1798095600.0
    end: 1798110000.0
"""

from datetime import datetime

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils import _amounts
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import run, with_connection
from ansible_collections.lavalite.cluster.plugins.module_utils._client import path_of
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError, Fault

AMOUNTS = (
    ("cpu", "cpu_milli", _amounts.milli),
    ("memory", "memory_bytes", _amounts.byte_count),
    ("gpu", "gpu_milli", _amounts.milli),
    ("storage", "storage_bytes", _amounts.byte_count),
)
SHOWN = ("amounts", "nodes", "users", "pool", "start", "end", "timeout_seconds", "every", "zone", "until")


def apply(client, params, check_mode):
    path = path_of("reservations", params["name"])
    dry = dict(dry_run="true") if check_mode else {}
    if params["state"] == "absent":
        found = client.find(path)
        if found is None:
            return dict(changed=False, diff=dict(before={}, after={}))
        client.delete(path, dry)
        return dict(changed=True, reservation=found, diff=dict(before=settings(found), after={}))
    answer = client.put(path, asked(params), dry).body
    made = answer["reservation"]
    before = {} if answer["changed"] else settings(made)
    return dict(changed=answer["changed"], reservation=made, diff=dict(before=before, after=settings(made)))


def asked(params):
    """The API's body. Raises ApiError for what is not understood."""
    try:
        body = {}
        for name, field, parse in AMOUNTS:
            if params[name]:
                body[field] = parse(params[name], name)
        body["duration_seconds"] = _amounts.seconds(params["duration"], "duration")
        if params["timeout"]:
            body["timeout_seconds"] = _amounts.seconds(params["timeout"], "timeout")
        if params["start"]:
            body["start"] = seconds_of(params["start"], "start")
        if params["until"]:
            body["until"] = seconds_of(params["until"], "until")
    except ValueError as error:
        raise ApiError(0, [Fault("bad_input", str(error).rstrip("."))]) from None
    body.update((name, params[name]) for name in ("every", "zone") if params[name])
    return dict(body, count=params["nodes"], pool=params["pool"] or "", users=params["users"])


def seconds_of(text, option="start"):
    """Seconds since 1970, of a time that says its zone. Raises ValueError."""
    try:
        found = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ValueError("%s: %s is no time with a zone. Write 2026-12-24T08:00:00+01:00." % (option, text[:40]))
    return found.timestamp()


def settings(reservation):
    """What was asked for and what came of it, without what changes as it is used."""
    return dict((name, reservation.get(name)) for name in SHOWN)


def main():
    options = dict((name, dict(type="str")) for name in ("cpu", "memory", "gpu", "storage", "pool"))
    module = AnsibleModule(
        argument_spec=with_connection(
            name=dict(type="str", required=True),
            state=dict(type="str", choices=["present", "absent"], default="present"),
            duration=dict(type="str"),
            start=dict(type="str"),
            nodes=dict(type="int", default=1),
            users=dict(type="list", elements="str", default=[]),
            timeout=dict(type="str"),
            every=dict(type="str", choices=["day", "weekday", "week"]),
            zone=dict(type="str"),
            until=dict(type="str"),
            **options,
        ),
        required_if=[("state", "present", ["duration"])],
        supports_check_mode=True,
    )
    run(module, lambda client: apply(client, module.params, module.check_mode))


if __name__ == "__main__":
    main()
