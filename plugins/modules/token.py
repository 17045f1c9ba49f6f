#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: token
short_description: A token for the API, in a file of its owner alone
version_added: "0.1.0"
description:
  - Asks the LIM of the machine where the module runs for a token that speaks of the user that it runs as, and
    writes it to a file with mode 0600. The token itself is never returned, shown or logged.
  - A file that holds one which will do is left alone. One is asked for anew where the file can be read by others,
    where the token is another user's, of another leadership, or about to expire.
  - A token lives for five minutes at most. Get one right before it is needed.
author: LavaLite authors (@lavalite)
options:
  path:
    description: The file. Its folder must exist.
    type: path
    required: true
  lim_socket:
    description: The Unix socket of the LIM.
    type: path
    default: /run/lavalite/lim.sock
  valid_for:
    description: For how long, in seconds, a token that is there must be good to be left alone.
    type: int
    default: 120
  connect_timeout:
    description: For how long, in seconds, the LIM may take to answer.
    type: float
    default: 30.0
extends_documentation_fragment:
  - lavalite.cluster.connection.changes
"""

EXAMPLES = r"""
- name: A token of one's own
  lavalite.cluster.token:
    path: /run/user/1000/lavalite.token
  register: fresh

- name: It is used from here
  lavalite.cluster.job_info:
    token_path: "{{ fresh.path }}"
    api: [https://ctl1:6880, https://ctl2:6880]
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
  sample: /run/user/1000/lavalite.token
expires_at:
  description: Until when the token is good, in seconds since 1970. Absent in check mode where it would be a new one.
  returned: success
  type: float
  sample: 1790000000.0
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.lavalite.cluster.plugins.module_utils import _tokenfile
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import finish
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError, Fault
from ansible_collections.lavalite.cluster.plugins.module_utils._lim import LeaderSource

AUDIENCE = "api"
WHO_LEADS = dict(type="who_leads")
ASK_TOKEN = dict(type="ask_token", audience=AUDIENCE)


def bring_to_state(params, check_mode):
    path = params["path"]
    kept = at_path(path, lambda: _tokenfile.look_at(path))
    lim = LeaderSource(params["lim_socket"], params["connect_timeout"])
    epoch = asked(lim, WHO_LEADS)[0].get("epoch")
    good = kept.will_do(AUDIENCE, epoch, time.time() + params["valid_for"])
    changed = not (good and kept.is_private())
    result = dict(changed=changed, path=path, diff=difference(path, kept, good, changed))
    if not changed:
        return dict(result, expires_at=kept.claims["expires_at"])
    if check_mode:
        return result
    granted = asked(lim, WHO_LEADS, ASK_TOKEN)[1]
    at_path(path, lambda: _tokenfile.write(path, granted["token"]))
    return dict(result, expires_at=granted["expires_at"])


def difference(path, kept, good, changed):
    """What can be told of a token that is never shown."""
    before = {} if kept.mode is None else dict(mode="%04o" % kept.mode, good=good)
    after = dict(mode="%04o" % _tokenfile.MODE, good=True) if changed else before
    return dict(before=before, after=after, before_header=path, after_header=path)


def asked(lim, *frames):
    """The LIM's answers. Raises ApiError with what it said."""
    try:
        return lim.ask(*frames)
    except (OSError, ValueError) as error:
        hint = "Is LIM running, and may this user ask it? Its socket is that of `lavalite status` on this machine."
        raise ApiError(0, [Fault("unreachable", str(error), "lim_socket", hint)]) from None


def at_path(path, work):
    try:
        return work()
    except OSError as error:
        hint = "Name a file in a folder that is there, and that this user may write to."
        text = "%s: %s" % (path, error.strerror or error)
        raise ApiError(0, [Fault("bad_input", text, "path", hint)]) from None


def main():
    module = AnsibleModule(
        argument_spec=dict(
            path=dict(type="path", required=True),
            lim_socket=dict(type="path", default="/run/lavalite/lim.sock"),
            valid_for=dict(type="int", default=120),
            connect_timeout=dict(type="float", default=30.0),
        ),
        supports_check_mode=True,
    )
    finish(module, lambda: bring_to_state(module.params, module.check_mode))


if __name__ == "__main__":
    main()
