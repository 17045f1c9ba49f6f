# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From hosts as `/v1` describes them to hosts of an inventory. Every name is checked before the first is added."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import re

from ansible import constants as C
from ansible.inventory.host import Host
from ansible.utils.display import Display
from ansible_collections.lavalite.cluster.plugins.plugin_utils._text import NAME, plain

ALL_HOSTS = "lavalite_hosts"
ENTERABLE = ("composed", "resizing", "draining")
"""States in which a live host can be entered."""
PART = ("kind", "amount", "provider", "pool", "devices", "circuit")
_STATE = re.compile(r"[a-z_]{1,32}")
_UNSAFE_IN_GROUP = re.compile(r"[^A-Za-z0-9_]")
display = Display()


class RefusedName(Exception):
    """`str()` of it says which, and why."""


class Population:
    """Adds hosts in bulk: a call for each variable of ten thousand hosts takes longer than all else."""

    def __init__(self, inventory, nodes, path):
        self._inventory = inventory
        self._nodes = nodes
        self._path = path
        self._origin = None

    def check(self, hosts):
        """Refuse what is no name, or is the name of something else. Raises RefusedName with all of them."""
        refused = []
        seen = set()
        for host in hosts:
            name = host.get("name")
            if not isinstance(name, str) or not NAME.fullmatch(name):
                refused.append("%.80r is no name of a host" % (name,))
            elif name in self._inventory.groups:
                refused.append("%s is the name of a group. Call the logical host something else" % name)
            elif name in self._inventory.hosts:
                refused.append("%s is the name of a node. Call the logical host something else" % name)
            elif name in seen:
                refused.append("%s is there twice" % name)
            elif not _STATE.fullmatch(str(host.get("state"))):
                refused.append("%s has the state %.40r, which is none" % (name, host.get("state")))
            refused.extend(
                "%s takes from %.80r, which is no name of a pool" % (name, pool)
                for pool in host.get("pools") or []
                if not isinstance(pool, str) or not NAME.fullmatch(pool)
            )
            seen.add(name)
        if refused:
            raise RefusedName("\n".join("%s: %s." % (self._path, text) for text in refused))

    def add(self, source, hosts, pools):
        """Add hosts with their variables and groups; `pools` are those that have a group even when it is empty."""
        for group in [ALL_HOSTS] + [pool_group(pool) for pool in sorted(pools)]:
            self._inventory.add_group(group)
        members = {}
        for host in hosts:
            entry = self._added(host["name"])
            entry.vars.update(self._variables(source, host))
            groups = [pool_group(pool) for pool in sorted(host.get("pools") or [])]
            for group in [ALL_HOSTS] + groups + ["lavalite_state_" + host["state"]]:
                members.setdefault(group, []).append(entry)
        for group in members:
            added = self._inventory.groups[self._inventory.add_group(group)]
            for entry in members[group]:
                added.add_host(entry)

    def _added(self, name):
        """A new host. Where it comes from is asked for only once: `add_host` asks the file system each time."""
        if self._origin is None or name in C.LOCALHOST:
            self._inventory.add_host(name)
            added = self._inventory.hosts[name]
            self._origin = dict(added.vars)
            return added
        added = self._inventory.hosts[name] = Host(name)
        added.vars = dict(self._origin)
        return added

    def _variables(self, source, host):
        anchor = host.get("anchor") or ""
        variables = dict(
            lavalite_source=plain(source),
            lavalite_state=plain(host["state"]),
            lavalite_pools=plain(sorted(host.get("pools") or [])),
            lavalite_anchor=plain(anchor),
            lavalite_parts=[_part(part) for part in host.get("parts") or []],
        )
        if host.get("reason"):
            variables["lavalite_reason"] = host["reason"]
        if source == "live" and host["state"] in ENTERABLE:
            if anchor in self._inventory.hosts:
                variables.update(self._nodes.connection(anchor, host["name"]))
            else:
                text = "%s: %s is anchored on %.80r, which is no node of this inventory: it cannot be reached."
                display.warning(text % (self._path, host["name"], anchor))
        return variables


def _part(part):
    """What a part is, without what it has not, and without its id, which is no more than the rest of it."""
    return dict((name, plain(part[name])) for name in PART if part.get(name))


def pool_group(pool):
    return "lavalite_pool_" + _UNSAFE_IN_GROUP.sub("_", pool)
