#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: daemon
short_description: A daemon as a plain process, where there is no systemd
version_added: "0.1.0"
description:
  - Starts and stops one long-running process of the user that the module runs as. No root is needed.
  - The process is found again by its pid and its start time, so no other process is ever taken for it.
  - It is restarted when its command, its environment, its version or a file in O(config) has changed.
  - On machines with systemd, use units.
author: LavaLite authors (@lavalite)
options:
  name:
    description: What it is called. Its log and its record, NAME.process, are named after it.
    type: str
    required: true
  state:
    description: Whether it should run.
    type: str
    choices: [started, stopped, restarted]
    default: started
  command:
    description: The program and its arguments. It must stay in the foreground. Required unless it is stopped.
    type: list
    elements: str
  environment:
    description: Variables beside those that the module has.
    type: dict
    default: {}
  config:
    description: Files whose contents it reads at its start.
    type: list
    elements: path
    default: []
  version:
    description: The version of the program; another one means a restart.
    type: str
    default: ''
  state_path:
    description: An existing folder for the record and the log.
    type: path
    required: true
  chdir:
    description: The folder in which it runs. By default the root.
    type: path
  socket:
    description: The Unix socket on which it answers once it is ready.
    type: path
  timeout:
    description: For how long, in seconds, it may take to be ready, or to end before it is killed.
    type: int
    default: 30
  settle:
    description: For how long, in seconds, one without O(socket) must live to be taken for started.
    type: int
    default: 1
extends_documentation_fragment:
  - lavalite.cluster.connection.changes
"""

EXAMPLES = r"""
- name: LIM runs
  lavalite.cluster.daemon:
    name: lim
    command: [/usr/sbin/lavalite-lim, --config, /srv/lavalite/lim/lim.conf]
    config: [/srv/lavalite/lim/lim.conf]
    state_path: /srv/lavalite/lim
    socket: /srv/lavalite/lim/lim.sock
"""

RETURN = r"""
pid:
  description: Its process. 0 where it does not run.
  returned: success
  type: int
  sample: 4711
log_path:
  description: Where it writes.
  returned: success
  type: str
"""

import fcntl
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils import _process


def bring_to_state(params, check_mode):
    """The module's result. Raises DaemonError."""
    place = os.path.join(params["state_path"], params["name"])
    record_path, log_path = place + ".process", place + ".log"
    environment = dict((str(k), str(v)) for k, v in params["environment"].items())
    running = _process.read_record(record_path)
    wanted = ""
    if params["state"] != "stopped":
        wanted = _process.digest_of(params["command"], environment, params["config"], params["version"])
    is_right = (running or {}).get("digest", "") == wanted and params["state"] != "restarted"
    result = dict(changed=not is_right, pid=running["pid"] if running else 0, log_path=log_path)
    result["diff"] = dict(before=said(bool(running), (running or {}).get("digest")), after=said(bool(wanted), wanted))
    if is_right or check_mode:
        return result
    if running:
        result["ended_by_itself"] = _process.stop(running, params["timeout"])
    if wanted:
        record = _process.start(
            params["command"],
            environment,
            params["chdir"],
            log_path,
            record_path,
            wanted,
            params["socket"],
            params["timeout"],
            params["settle"],
        )
        result["pid"] = record["pid"]
    else:
        os.unlink(record_path)
        result["pid"] = 0
    return result


def said(runs, digest):
    return "runs, %s\n" % digest[:12] if runs else "does not run\n"


def locked(params, check_mode):
    """One module at a time a daemon: two at once would start it twice."""
    if not os.path.isdir(params["state_path"]):
        # Where the folder never was, nothing of it runs: there is nothing to stop.
        if check_mode or params["state"] == "stopped":
            return dict(changed=params["state"] != "stopped", pid=0)
        raise _process.DaemonError("state_path: there is no folder %s. Make it first." % params["state_path"])
    lock = os.path.join(params["state_path"], params["name"] + ".process-lock")  # never a lock of the daemon itself
    if check_mode and not os.path.exists(lock):
        return bring_to_state(params, check_mode)
    with open(lock, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return bring_to_state(params, check_mode)


def main():
    module = AnsibleModule(
        argument_spec=dict(
            name=dict(type="str", required=True),
            state=dict(type="str", choices=["started", "stopped", "restarted"], default="started"),
            command=dict(type="list", elements="str"),
            environment=dict(type="dict", default={}),
            config=dict(type="list", elements="path", default=[]),
            version=dict(type="str", default=""),
            state_path=dict(type="path", required=True),
            chdir=dict(type="path"),
            socket=dict(type="path"),
            timeout=dict(type="int", default=30),
            settle=dict(type="int", default=1),
        ),
        supports_check_mode=True,
        required_if=[("state", "started", ("command",)), ("state", "restarted", ("command",))],
    )
    try:
        result = locked(module.params, module.check_mode)
    except (_process.DaemonError, OSError) as error:
        module.fail_json(msg="%s: %s" % (module.params["name"], error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
