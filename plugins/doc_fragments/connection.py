# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of plugins/module_utils/_arguments.py, in words."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  api:
    description:
      - Addresses of the API, such as V(https://ctl1:6880). Any of them will do, the leader is followed.
    type: list
    elements: str
    default: []
  unix_socket:
    description:
      - The API's Unix socket, on the machine where the module runs. It is tried first, and needs no token.
    type: path
  lim_socket:
    description:
      - The Unix socket of the LIM on the machine where the module runs.
      - LIM says who leads, and gives a token to whoever may read its socket.
    type: path
  token:
    description:
      - The bearer token.
      - Without it, the environment variable E(LAVALITE_TOKEN) of the machine where the module runs is used,
        then O(token_path).
    type: str
  token_path:
    description:
      - A file that holds the token.
    type: path
  ca_path:
    description:
      - The certificates that vouch for the API, in PEM.
      - Without it, C(/etc/lavalite/tls/ca.crt) is used where it is there and O(lim_socket) is set, else the system's.
    type: path
  connect_timeout:
    description:
      - For how long, in seconds, an API that does not answer or has no leader is asked again,
        and how long one call may take.
    type: float
    default: 30.0
"""

    ATTRIBUTES = r"""
attributes:
  check_mode:
    description: Can run in check mode and say what it would change without changing it.
  diff_mode:
    description: Says what it changed, or would change, in diff mode.
"""

    CHANGES = r"""
attributes:
  check_mode:
    description: Can run in check mode and say what it would change without changing it.
    support: full
  diff_mode:
    description: Says what it changed, or would change, in diff mode.
    support: full
"""

    READS = r"""
attributes:
  check_mode:
    description: Can run in check mode; it changes nothing in any mode.
    support: full
  diff_mode:
    description: Says what it changed, or would change, in diff mode.
    support: none
"""
