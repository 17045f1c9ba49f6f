# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text from elsewhere: which of it may be a name, and which is marked as harmless."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import functools
import re

from ansible.template import trust_as_template

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""What nodes, logical hosts and pools may be called."""
_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+-]{0,200}")
_REMEMBERED = 65536
"""Texts that are marked once: ten thousand hosts repeat a few hundred of them, and each mark takes its time."""


def plain(value):
    """Text that cannot be a template is marked as harmless, so that tools read it as text; the rest stays inert."""
    if isinstance(value, str):
        return _marked(value) if value.__class__ is str else _mark(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return dict((plain(key), plain(item)) for key, item in value.items())
    return value


def _mark(text):
    return trust_as_template(text) if _PLAIN.fullmatch(text) else text


_marked = functools.lru_cache(maxsize=_REMEMBERED)(_mark)
