# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of plugins/module_utils/_listing.py, in words."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  limit:
    description: How many to return at most.
    type: int
    default: 1000
"""

    NAMED = r"""
options:
  name:
    description: Only those of these names. One that is not there is left out.
    type: list
    elements: str
    default: []
"""
