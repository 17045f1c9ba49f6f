# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""pools.yml, read and checked whole before anything of it is used. The checks and the plan are the package's own."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import yaml

NODES_GROUP = "lavalite_nodes"
CAPACITY_VARIABLE = "lavalite_capacity"
LABELS_VARIABLE = "lim_labels"
KNOWN_KEYS = frozenset(
    "plugin cluster mode api unix_socket token_path ca_path timeout capacity links pools logical_hosts queues "
    "compose groups keyed_groups strict use_extra_vars leading_separator "
    "cache cache_plugin cache_timeout cache_connection cache_prefix".split()
)
MISSING_PACKAGE = (
    "the Python package lavalite is not installed beside Ansible, and without it nothing is planned offline: "
    "pip install lavalite, or set mode: live."
)
MISSING_NUMPY = (
    "numpy is not installed beside Ansible, and without it nothing is planned offline: "
    "pip install 'lavalite[control]', or set mode: live."
)


class DocumentError(Exception):
    """`str()` of it is a line for each fault."""


class Document:
    """A good pools.yml. Where the package is not installed, only its sections' names are checked."""

    def __init__(self, path, parsed, raw):
        self._path = path
        self._parsed = parsed
        self._raw = raw

    @classmethod
    def read(cls, path):
        """Raises DocumentError with all faults."""
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, ValueError) as error:
            raise DocumentError(
                "%s: it cannot be read: %s." % (path, getattr(error, "strerror", "not text"))
            ) from None
        if package() is None:
            return cls(path, None, _sections(text, path))
        from lavalite.base.errors import InputError
        from lavalite.model.pools import load_pools

        try:
            parsed = load_pools(text, path)
        except InputError as error:
            raise DocumentError(_sentences(error.faults)) from None
        return cls(path, parsed, parsed.raw)

    @property
    def pool_names(self):
        return [str(name) for name in self._raw.get("pools") or {}]

    def plan(self, inventory, nodes):
        """The hosts that the document would yield, as the API would describe them. Raises DocumentError."""
        if self._parsed is None:
            raise DocumentError("%s: %s" % (self._path, MISSING_PACKAGE))
        from lavalite.model.pools import check_document

        try:
            from lavalite.placement.compose import plan_hosts
        except ImportError:
            raise DocumentError("%s: %s" % (self._path, MISSING_NUMPY)) from None
        known = self._nodes(inventory, nodes)
        faults = check_document(self._parsed, known)
        if faults:
            raise DocumentError(_sentences(faults))
        links = self._parsed.link_specs()
        planned = plan_hosts(self._parsed.hosts(), known, self._parsed.pool_specs(), links=links)
        refused = [(name, host) for name, host in planned.items() if not hasattr(host, "parts")]
        if refused:
            raise DocumentError("\n".join(self._does_not_fit(name, refusal) for name, refusal in refused))
        return [_described(host) for host in planned.values()]

    def _does_not_fit(self, name, refusal):
        """A line for a host that no node has room for."""
        from lavalite.base.errors import Fault

        entry = next(spec.entry for spec in self._parsed.hosts() if spec.name == name)
        line = self._parsed.lines.get(("logical_hosts", entry), 0)
        message = "%s does not fit: %s" % (name, refusal.sentence())
        hint = "Lower what it asks for, or add nodes."
        return Fault("does_not_fit", message, "logical_hosts.%s" % entry, hint, self._path, line).sentence()

    def _nodes(self, inventory, nodes):
        """The hosts of the group lavalite_nodes, with what their variables or the document say they have."""
        from lavalite.base.errors import InputError
        from lavalite.model.pools_document import capacity_of
        from lavalite.model.pools_entries import CapacityEntry
        from pydantic import ValidationError

        group = inventory.groups.get(NODES_GROUP)
        found = []
        for host in group.get_hosts() if group else ():
            name = str(host.name)
            variables = nodes.of(name)
            entry = self._parsed.capacity.get(name)
            if CAPACITY_VARIABLE in variables:
                try:
                    entry = CapacityEntry.model_validate(as_plain(variables[CAPACITY_VARIABLE]))
                except (ValidationError, InputError) as error:
                    text = "host %s: %s: %s" % (name, CAPACITY_VARIABLE, _first_reason(error))
                    raise DocumentError(text) from None
            labels = as_plain(variables.get(LABELS_VARIABLE) or {})
            labels = dict((k, v if isinstance(v, list) else [str(v)]) for k, v in labels.items())
            labels["group"] = sorted(str(g.name) for g in host.get_groups() if g.name not in ("all", "ungrouped"))
            found.append(capacity_of(name, entry or CapacityEntry(), labels))
        return found


def package():
    """The installed package, or None."""
    try:
        import lavalite.model.pools
    except ImportError:
        return None
    return lavalite.model.pools


def as_plain(value):
    """Without Ansible's marks: other libraries take only exact types."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, dict):
        return dict((as_plain(key), as_plain(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    return str(value)


def _sections(text, path):
    """The mapping in a document whose entries nobody here can judge; its keys can be."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DocumentError("%s: this is not YAML: %s" % (path, error)) from None
    if not isinstance(raw, dict):
        raise DocumentError("%s: it is not a mapping. Begin with plugin: lavalite.cluster.pools." % path)
    unknown = sorted(str(key) for key in set(raw) - KNOWN_KEYS)
    if unknown:
        raise DocumentError("\n".join("%s: %s: unknown key. Remove it." % (path, key) for key in unknown))
    return raw


def _sentences(faults):
    return "\n".join(fault.sentence() for fault in faults)


def _first_reason(error):
    found = error.errors()[0] if hasattr(error, "errors") else None
    if found is None:
        return str(error)
    return "%s: %s" % (".".join(str(part) for part in found["loc"]), found["msg"])


def _described(host):
    """A LogicalHost as `/v1/hosts` would say it, but that it is only planned."""
    told = host.model_dump(mode="json", include={"name", "anchor", "pools", "parts", "circuits", "executor"})
    return dict(told, state="planned")
