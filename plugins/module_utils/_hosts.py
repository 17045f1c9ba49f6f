# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Logical hosts as lines for people: what each is made of, and by which way it reaches what is elsewhere."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

from ansible_collections.lavalite.cluster.plugins.module_utils._amounts import shown

VM = "vm"


def host_names(name, spec):
    """The hosts that an entry stands for: itself, or as many as `count` says."""
    count = str((spec or {}).get("count", ""))
    return {"%s-%d" % (name, number) for number in range(1, int(count) + 1)} if count.isdigit() else {name}


def made_of(host):
    """A line for each part of a host as `/v1` describes it: `memory 128MiB of n03 by circuit 1Gbit/s over …`."""
    if not host.get("anchor"):
        return ["nowhere yet: %s" % host["reason"]] if host.get("reason") else []
    lines = ["%s on %s" % ("a virtual machine" if host.get("executor") == VM else "anchored", host["anchor"])]
    circuits = dict((circuit.get("id"), circuit) for circuit in host.get("circuits") or [])
    lost = host.get("degraded") or []
    for part in host.get("parts") or []:
        line = "%s %s" % (part["kind"], shown(part["kind"], part["amount"]))
        if part.get("provider") != host["anchor"]:
            line += " of %s" % part.get("provider")
        if part.get("circuit"):
            line += " by circuit %s" % _way(circuits.get(part["circuit"]), part["circuit"])
        lines.append(line + (", lost" if part.get("id") in lost else ""))
    return lines


def _way(circuit, name):
    """`1Gbit/s over link/n03/r1 link/n01/r1`; the circuit's name where no more is known of it."""
    if circuit is None:
        return name
    links = " ".join(circuit.get("links") or [])
    return shown("network", circuit.get("bits_per_second", 0)) + (" over %s" % links if links else "")


def all_made_of(hosts):
    """The lines of each host, by its name."""
    return dict((host.get("name"), made_of(host)) for host in hosts)
