#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: release
short_description: LavaLite's releases on a node
version_added: "0.1.0"
description:
  - Unpacks a release beside those that are there, switches the node to it, and goes back to the one before.
  - A release is there whole or not at all. What an interrupted run left is found out and replaced.
  - Who runs goes on as before until it is restarted; RV(behind) names them.
author: LavaLite authors (@lavalite)
options:
  state:
    description:
      - V(installed), it is on the node, and is not used by that.
      - V(current), the daemons use it from their next start on, and RV(previous) is the one before. Where it is not
        on the node, and O(archive) is given, it is installed first.
      - V(previous), back to the release before; which becomes RV(previous) in turn.
    type: str
    choices: [installed, current, previous]
    required: true
  name:
    description:
      - The release, as its folder is called.
      - Required unless O(state=previous).
    type: str
  archive:
    description:
      - A file on the node that holds the release. It is read where the release is not there, or not whole.
      - It is removed once it is unpacked.
    type: path
  root:
    description: The folder with C(current), C(previous) and C(releases/).
    type: path
    default: /opt/lavalite
  python:
    description: The interpreter that the daemons run with. It compiles what is unpacked.
    type: path
    default: /usr/bin/python3
  keep:
    description:
      - How many releases stay when the node is switched, the newest. 0 removes none.
      - The current one, the one before, and those that a process or an attempt of before still uses always stay.
    type: int
    default: 3
extends_documentation_fragment:
  - lavalite.cluster.connection.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: It is on the node
  lavalite.cluster.release:
    state: installed
    name: 0.2.0+1a2b3c4d-node-py311
    archive: /srv/lavalite.tar.gz

- name: It is what the daemons start from
  lavalite.cluster.release:
    state: current
    name: 0.2.0+1a2b3c4d-node-py311

- name: Back
  lavalite.cluster.release:
    state: previous
"""

RETURN = r"""
current:
  description: The release that the daemons start from. Empty where there is none.
  returned: success
  type: str
  sample: 0.2.0+1a2b3c4d-node-py311
previous:
  description: The release before. Empty where there is none.
  returned: success
  type: str
releases:
  description: All that are on the node, the oldest first.
  returned: success
  type: list
  elements: str
behind:
  description: Programs of LavaLite that run out of another release than RV(current), and so want a restart.
  returned: success
  type: list
  elements: str
  sample: [lavalite-lim, lavalite-sbatchd]
"""

import fcntl
import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils import _release

NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,200}")


class Seen:
    """What is there: of the links and folders. `said()` is what diff mode shows."""

    def __init__(self, current, previous, releases):
        self.current, self.previous, self.releases = current, previous, releases

    @classmethod
    def of(cls, place):
        return cls(place.linked("current"), place.linked("previous"), [n for n in place.names() if place.is_whole(n)])

    def said(self):
        lines = ["current: %s" % self.current, "previous: %s" % self.previous]
        return "\n".join(lines + ["release: %s" % name for name in sorted(self.releases)]) + "\n"


def wanted(params, place, before):
    """What will be there. Raises ReleaseError where that cannot be."""
    name = params["name"]
    if params["state"] == "installed":
        return Seen(before.current, before.previous, before.releases + [name] * (name not in before.releases))
    if params["state"] == "previous":
        name = place.way_back()
        if not name:
            now = before.current or "the first one"
            raise _release.ReleaseError("state: there is no release before %s on this node. Name another." % now)
    previous = before.previous if name == before.current else before.current
    return Seen(name, previous, before.releases + [name] * (name not in before.releases))


def pruned(keep, place, after, in_use):
    """Names that go: what is not whole, and the oldest of the others."""
    spared = {after.current, after.previous} | set(in_use)
    removable = [name for name in place.names() if name not in spared]
    surplus = max(0, len(after.releases) - keep)
    broken = [name for name in removable if name not in after.releases]
    return broken + [name for name in removable if name in after.releases][:surplus]


def bring_to_state(params, check_mode):
    """The module's result. Raises ReleaseError, OSError."""
    place = _release.Releases(params["root"])
    before = Seen.of(place)
    after = wanted(params, place, before)
    missing = params["state"] != "installed" and after.current not in before.releases and not params["archive"]
    # In check mode, what a task before would have unpacked is not there.
    if missing and not (check_mode and params["state"] == "current"):
        raise _release.ReleaseError("name: %s is not on this node, or not whole. Install it first." % after.current)
    in_use = _release.used(params["root"])
    going = []
    if params["state"] != "installed" and params["keep"] > 0:
        going = pruned(params["keep"], place, after, in_use)
        after.releases = [name for name in after.releases if name not in going]
    if not check_mode:
        carry_out(params, place, before, after, going)
    return dict(
        changed=before.said() != after.said() or bool(going),
        current=after.current,
        previous=after.previous,
        releases=after.releases,
        behind=_release.behind(in_use, after.current),
        diff=dict(before=before.said(), after=after.said()),
    )


def carry_out(params, place, before, after, going):
    if params["state"] != "previous" and params["name"] not in before.releases:
        if not params["archive"] or not os.path.isfile(params["archive"]):
            raise _release.ReleaseError(
                "archive: there is no file %s to make %s from." % (params["archive"], params["name"])
            )
        place.unpack(params["name"], params["archive"], params["python"])
    if params["state"] != "installed":
        place.switch(after.current)
    for name in going:
        place.remove(name)


def locked(params, check_mode):
    """One module at a time on a root."""
    if params["name"] is not None and not NAME.fullmatch(params["name"]):
        raise _release.ReleaseError("name: %.60r cannot be a release's name." % params["name"])
    folder = os.path.join(params["root"], "releases")
    if check_mode:
        return bring_to_state(params, check_mode)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return bring_to_state(params, check_mode)


def main():
    module = AnsibleModule(
        argument_spec=dict(
            state=dict(type="str", choices=["installed", "current", "previous"], required=True),
            name=dict(type="str"),
            archive=dict(type="path"),
            root=dict(type="path", default="/opt/lavalite"),
            python=dict(type="path", default="/usr/bin/python3"),
            keep=dict(type="int", default=3),
        ),
        supports_check_mode=True,
        required_if=[("state", "installed", ("name",)), ("state", "current", ("name",))],
    )
    os.umask(0o022)
    try:
        result = locked(module.params, module.check_mode)
    except _release.ReleaseError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg="root: %s: %s." % (error.filename or module.params["root"], error.strerror or error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
