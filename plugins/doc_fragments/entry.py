# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of plugins/module_utils/_entries.py, in words."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  name:
    description: The name of the entry.
    type: str
    required: true
  state:
    description: Whether it should be there. What is in use is not removed, and the module fails.
    type: str
    choices: [present, absent]
    default: present
  spec:
    description: The entry as it would stand in C(pools.yml). Required with O(state=present).
    type: dict
"""
