# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a node is reached, as the inventory says it: for the logical hosts that are anchored on it.

Nothing here comes from the API but the anchor's name, and that only once it is known to be a node of the inventory.
"""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import re

from ansible.inventory.helpers import get_group_vars
from ansible.template import trust_as_template
from ansible.utils.vars import combine_vars
from ansible.vars.plugins import get_vars_from_inventory_sources
from ansible_collections.lavalite.cluster.plugins.plugin_utils._text import NAME, plain

STATE_PATH_VARIABLE = "sbatchd_state_path"
DEFAULT_STATE_PATH = "/var/lib/lavalite/sbatchd"
_VARIABLE = re.compile(
    r"ansible_(host|port|user|password|connection|remote_tmp|python_interpreter|paramiko_[a-z0-9_]+"
    r"|ssh_[a-z0-9_]+|become[a-z0-9_]*|private_key_file|pipelining)"
)


class NodeVariables:
    """The variables that inventory sources and their vars files give a node; facts do not exist yet."""

    def __init__(self, inventory, loader):
        self._inventory = inventory
        self._loader = loader
        self._sources = [source for source in getattr(inventory, "processed_sources", []) if source]
        self._known = {}
        self._reached = {}

    def of(self, name):
        """All of a node's variables, groups' included."""
        if name not in self._known:
            host = self._inventory.hosts[name]
            groups = host.get_groups()
            merged = get_group_vars(groups)
            for entities, own in ((groups, None), ([host], host.get_vars())):
                if own is not None:
                    merged = combine_vars(merged, own)
                files = get_vars_from_inventory_sources(self._loader, self._sources, entities, "all")
                merged = combine_vars(merged, files)
            self._known[name] = merged
        return self._known[name]

    def connection(self, anchor, host):
        """Variables that take Ansible to logical host `host` on node `anchor`, through the host's enter program."""
        if anchor not in self._reached:
            self._reached[anchor] = self._way_to(anchor)
        reached, path = self._reached[anchor]
        return dict(reached, ansible_shell_executable=_joined(path, "/hosts/%s/enter" % host))

    def _way_to(self, anchor):
        """(variables that take Ansible to the node itself, the path of its agent's state)."""
        own = self.of(anchor)
        reached = dict((name, _seen_from(anchor, name, own[name])) for name in own if _VARIABLE.fullmatch(name))
        reached.setdefault("ansible_host", plain(anchor))
        path = _seen_from(anchor, STATE_PATH_VARIABLE, own.get(STATE_PATH_VARIABLE, DEFAULT_STATE_PATH))
        return reached, path


def _seen_from(anchor, name, value):
    """A value as it is on the anchor: plain ones as they are, templates by way of the anchor's own variables."""
    if not _is_template(value):
        return value
    if not NAME.fullmatch(anchor):
        return value
    return trust_as_template("{{ hostvars['%s']['%s'] }}" % (anchor, name))


def _joined(path, tail):
    joined = "%s%s" % (path, tail)
    return trust_as_template(joined) if _is_template(path) else plain(joined)


def _is_template(value):
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, dict):
        return any(_is_template(item) for item in value.values())
    return isinstance(value, (list, tuple)) and any(_is_template(item) for item in value)
