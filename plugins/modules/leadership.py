#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: leadership
short_description: Who leads the cluster, and a planned hand-over
version_added: "0.1.0"
description:
  - Asks the LIM of the node on which it runs who leads; and where that node leads, has it hand over.
  - Work that runs is not touched by a hand-over.
author: LavaLite authors (@lavalite)
options:
  state:
    description:
      - V(known), LIM answers and knows who leads. That is waited for, and nothing is changed.
      - V(elsewhere), this node does not lead. Where it does, its scheduler writes what it has decided and ends, and
        another candidate takes over, which is waited for. A node whose LIM does not run leads nothing.
    type: str
    choices: [known, elsewhere]
    default: known
  lim_socket:
    description:
      - The Unix socket of the LIM on the machine where the module runs.
      - To hand over one must be root, or the user that LIM runs as.
    type: path
    default: /run/lavalite/lim.sock
  timeout:
    description:
      - For how long, in seconds, to wait. With 0, V(known) says what is known now, be it nothing.
      - In check mode nothing is waited for.
    type: int
    default: 60
extends_documentation_fragment:
  - lavalite.cluster.connection.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Who leads?
  lavalite.cluster.leadership:
  register: leadership

- name: Another candidate leads, before this one is shut down
  lavalite.cluster.leadership:
    state: elsewhere
"""

RETURN = r"""
node:
  description: The leading node. Empty where nobody is known to lead.
  returned: success
  type: str
  sample: ctl2
mine:
  description: Whether this node leads.
  returned: success
  type: bool
epoch:
  description: The number of the leadership, which only grows. Empty where nobody is known to lead.
  returned: success
  type: list
  elements: int
  sample: [1, 4711]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils._lim import LimSocket
from ansible_collections.lavalite.cluster.plugins.module_utils._waiting import until

ANSWER_SECONDS = 5.0


class HandOverError(Exception):
    """`str()` of it is a sentence for people."""


def leader(socket):
    """(what LIM says, or nothing; why it says nothing)."""
    try:
        with LimSocket(socket, ANSWER_SECONDS) as lim:
            said = lim.ask(dict(type="who_leads"))
    except (OSError, ValueError) as error:
        return {}, str(error)
    return (said, "") if said.get("node") else ({}, "%s: nobody is known to lead" % socket)


def known(socket, timeout_seconds):
    """Raises HandOverError where nobody leads within the time."""
    said = leader(socket)[0]
    if said or timeout_seconds <= 0:
        return said
    said = until(lambda: leader(socket)[0], timeout_seconds)
    if said is None:
        reason = leader(socket)[1] or "%s: nobody was known to lead" % socket
        advice = "Look at LIM on the candidates: journalctl -u lavalite-lim."
        raise HandOverError("%s, not within %d s. %s" % (reason, timeout_seconds, advice))
    return said


def elsewhere(socket, timeout_seconds):
    """Raises HandOverError where nobody takes over, or LIM refuses."""
    first = leader(socket)[0]
    try:
        with LimSocket(socket, ANSWER_SECONDS) as lim:
            lim.ask(dict(type="resign"))
    except (OSError, ValueError) as error:
        now = leader(socket)[0]
        if now and not now.get("mine"):  # it went by itself in the meantime
            return now
        raise HandOverError("lim_socket: no hand-over: %s." % error) from None

    def taken():
        now = leader(socket)[0]
        return now if now and now.get("epoch") != first.get("epoch") else None

    now = until(taken, timeout_seconds)
    if now is None or now.get("mine"):
        outcome = "took over again itself" if now else "nobody took over within %d s" % timeout_seconds
        advice = "Look at LIM on the other candidates (journalctl -u lavalite-lim), and whether they reach the store."
        raise HandOverError("%s handed over, and %s. %s" % (first.get("node"), outcome, advice))
    return now


def bring_to_state(params, check_mode):
    """The module's result. Raises HandOverError."""
    socket, timeout_seconds = params["lim_socket"], 0 if check_mode else params["timeout"]
    if params["state"] == "known":
        return result(known(socket, timeout_seconds), False)
    now = leader(socket)[0]
    if not now.get("mine"):
        return result(now, False)
    said = result(now if check_mode else elsewhere(socket, timeout_seconds), True)
    said["diff"] = dict(before="leads: %s\n" % now["node"], after="leads: %s\n" % _after(said, check_mode))
    return said


def _after(said, check_mode):
    return "another candidate" if check_mode else said["node"]


def result(leader_frame, changed):
    return dict(
        changed=changed,
        node=str(leader_frame.get("node") or ""),
        mine=bool(leader_frame.get("mine")),
        epoch=list(leader_frame.get("epoch") or []),
    )


def main():
    module = AnsibleModule(
        argument_spec=dict(
            state=dict(type="str", choices=["known", "elsewhere"], default="known"),
            lim_socket=dict(type="path", default="/run/lavalite/lim.sock"),
            timeout=dict(type="int", default=60),
        ),
        supports_check_mode=True,
    )
    try:
        said = bring_to_state(module.params, module.check_mode)
    except HandOverError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**said)


if __name__ == "__main__":
    main()
