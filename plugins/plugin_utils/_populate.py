# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From hosts as `/v1` describes them to hosts of an inventory. Every name is checked before the first is added."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import ipaddress
import re

from ansible import constants as C
from ansible.inventory.host import Host
from ansible.utils.display import Display
from ansible_collections.lavalite.cluster.plugins.plugin_utils._text import NAME, plain

ALL_HOSTS = "lavalite_hosts"
ENTERABLE = ("composed", "resizing", "draining")
"""States in which a live host can be entered."""
PART = ("kind", "amount", "provider", "pool", "devices", "circuit")
CIRCUIT = ("id", "provider", "bits_per_second", "links")
BARE, VM = "bare", "vm"
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
        variables = dict(
            lavalite_source=plain(source),
            lavalite_state=plain(host["state"]),
            lavalite_pools=plain(sorted(host.get("pools") or [])),
            lavalite_anchor=plain(host.get("anchor") or ""),
            lavalite_executor=plain(host.get("executor") or BARE),
            lavalite_parts=[_with(PART, part) for part in host.get("parts") or []],
            lavalite_circuits=[_with(CIRCUIT, circuit) for circuit in host.get("circuits") or []],
        )
        if host.get("reason"):
            variables["lavalite_reason"] = host["reason"]
        if host.get("degraded"):
            variables["lavalite_degraded"] = plain(host["degraded"])
        if source == "live" and host["state"] in ENTERABLE:
            variables.update(self._way_to(host))
        return variables

    def _way_to(self, host):
        """Connection variables, none where it cannot be reached: then there is a warning."""
        name, anchor = host["name"], host.get("anchor") or ""
        if host.get("executor") == VM:
            address = ip_address(host.get("address"))
            if address:
                # Said, since the group `all` may have another one, as inventories of one machine do.
                return plain(dict(ansible_host=address, ansible_user="root", ansible_connection="ssh"))
            text = "%s: %s is a virtual machine at %.80r, which is no machine's IP address: it cannot be reached."
            display.warning(text % (self._path, name, host.get("address") or ""))
        elif anchor in self._inventory.hosts:
            return self._nodes.connection(anchor, name)
        else:
            text = "%s: %s is anchored on %.80r, which is no node of this inventory: it cannot be reached."
            display.warning(text % (self._path, name, anchor))
        return {}


def _with(fields, item):
    """What a part or a circuit has of these. A part's id, among others, is no more than the rest of it."""
    return dict((name, plain(item[name])) for name in fields if item.get(name))


def ip_address(text):
    """The address of `198.18.0.7/24` or `2001:db8::7`; nothing where it is none, or not another machine's."""
    try:
        address = ipaddress.ip_interface(str(text)).ip
    except ValueError:
        return ""
    if "%" in str(text):  # of one link, by a name that only the node knows
        return ""
    return "" if address.is_loopback or address.is_unspecified or address.is_multicast else str(address)


def pool_group(pool):
    return "lavalite_pool_" + _UNSAFE_IN_GROUP.sub("_", pool)
