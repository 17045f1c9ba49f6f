#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: daemon_files
short_description: The files of a daemon, and whether its unit is to be restarted for them
version_added: "0.1.0"
description:
  - Lays down files, folders and links, in the order in which they are given. Each is replaced in one step.
  - Says whether the unit that reads them began before they were as they are. So what an interrupted run wrote down,
    and did not come to restart anything for, is found out by the next one.
  - Restarts nothing itself.
author: LavaLite authors (@lavalite)
options:
  files:
    description: What is to be there. The first fault ends it.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where.
        type: path
        required: true
      state:
        description:
          - V(file), with O(files[].content); where that is not given the file must be there, and keeps what is in it.
          - V(directory), also its parents; V(link), to O(files[].src); V(absent), no file.
        type: str
        choices: [file, directory, link, absent]
        default: file
      content:
        description: The text of a file.
        type: str
      src:
        description: Where a link leads to. It must be there, but in check mode.
        type: str
        default: ''
      mode:
        description: The mode, in octal digits. Empty, it stays as it is.
        type: str
        default: ''
      owner:
        description: The user whose it is. Empty, it stays as it is.
        type: str
        default: ''
      group:
        description: The group whose it is. Empty, it stays as it is.
        type: str
        default: ''
      validate:
        description: A command that finds a new content right; V(%s) is the file with it. Not run in check mode.
        type: list
        elements: str
        default: []
      at_start:
        description: Whether O(unit) reads it at its start and not again.
        type: bool
        default: false
  unit:
    description: The unit whose process reads them.
    type: str
    default: ''
  reads:
    description: More files that O(unit) reads at its start, which others lay down.
    type: list
    elements: path
    default: []
  look:
    description: Files of which only to say whether they are there.
    type: list
    elements: path
    default: []
extends_documentation_fragment:
  - lavalite.cluster.connection.changes
"""

EXAMPLES = r"""
- name: What the daemon reads is there
  lavalite.cluster.daemon_files:
    unit: example.service
    files:
      - {path: /etc/systemd/system/example.service, content: "{{ unit }}", mode: "0644", at_start: true}
      - {path: /etc/example, state: directory, mode: "0755"}
      - {path: /etc/example/example.conf, content: "{{ configuration }}", mode: "0644", at_start: true}
  register: example

- name: It runs with that
  ansible.builtin.systemd_service:
    name: example.service
    state: "{{ 'restarted' if example.unit.restart else 'started' }}"
    daemon_reload: "{{ example.unit.reload }}"
"""

RETURN = r"""
changed_paths:
  description: What was changed, or would be.
  returned: success
  type: list
  elements: str
there:
  description: Those of O(look) that are there.
  returned: success
  type: list
  elements: str
unit:
  description: What systemd says of O(unit). Without one, or without systemd, all are false.
  returned: success
  type: dict
  contains:
    there:
      description: Whether systemd has read it, or could.
      type: bool
    active:
      description: Whether it runs.
      type: bool
    enabled:
      description: Whether it starts with the machine.
      type: bool
    reload:
      description: Whether systemd has read an older one.
      type: bool
    restart:
      description: Whether it runs, and began before the files that it reads at its start were as they are.
      type: bool
    newer:
      description: Those files.
      type: list
      elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils import _files, _unit

UNITS = "/etc/systemd/system/"


def bring_to_state(params, check_mode):
    """The module's result. Raises FilesError, OSError."""
    changed, diff = [], []
    for entry in params["files"]:
        what = dict((key, entry[key]) for key in entry if key != "at_start")
        difference = _files.Wanted(**what).bring(check_mode)
        if difference:
            changed.append(entry["path"])
            diff.append(dict(difference, before_header=entry["path"], after_header=entry["path"]))
    return dict(
        changed=bool(changed),
        changed_paths=changed,
        there=[path for path in params["look"] if os.path.lexists(path)],
        unit=unit_state(params, changed),
        diff=diff,
    )


def unit_state(params, changed):
    """What is to be known of the unit, once its files are as they are."""
    unit = _unit.look(params["unit"]) if params["unit"] else _unit.said("")
    pid, at_start = unit.pop("pid"), [entry["path"] for entry in params["files"] if entry["at_start"]]
    moment = _unit.began(pid)
    newer = [path for path in at_start if path in changed]
    if moment is not None:
        newer = sorted(set(newer) | set(_unit.newer(at_start + params["reads"], moment)))
    # In check mode systemd has not seen what would be laid down; and without one it sees nothing before it is told.
    reload = unit["reload"] or any(path.startswith(UNITS) for path in changed)
    return dict(unit, reload=reload, newer=newer, restart=unit["active"] and bool(newer))


def main():
    entry = dict(
        path=dict(type="path", required=True),
        state=dict(type="str", choices=["file", "directory", "link", "absent"], default="file"),
        content=dict(type="str"),
        src=dict(type="str", default=""),
        mode=dict(type="str", default=""),
        owner=dict(type="str", default=""),
        group=dict(type="str", default=""),
        validate=dict(type="list", elements="str", default=[]),
        at_start=dict(type="bool", default=False),
    )
    module = AnsibleModule(
        argument_spec=dict(
            files=dict(type="list", elements="dict", required=True, options=entry),
            unit=dict(type="str", default=""),
            reads=dict(type="list", elements="path", default=[]),
            look=dict(type="list", elements="path", default=[]),
        ),
        supports_check_mode=True,
    )
    os.umask(0o022)
    try:
        result = bring_to_state(module.params, module.check_mode)
    except _files.FilesError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg="%s: %s." % (error.filename, error.strerror))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
