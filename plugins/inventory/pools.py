# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
name: pools
short_description: The logical hosts of a LavaLite cluster
version_added: "0.1.0"
author: LavaLite authors (@lavalite)
description:
  - Reads C(pools.yml), the operator's one file, and yields each logical host as a host.
  - Live, the hosts are those that the cluster has, reached by way of the node that each is anchored on.
    Offline, they are those that the file would yield, planned by the installed C(lavalite) package.
  - The file's name must be C(pools.yml), or end in C(.pools.yml), and it must sort after the inventory of the nodes.
notes:
  - Hosts get the variables C(lavalite_source) (V(live) or V(plan)), C(lavalite_state), C(lavalite_pools),
    C(lavalite_anchor), C(lavalite_executor) (V(bare) or V(vm)), C(lavalite_parts) and C(lavalite_circuits), and are
    in the groups C(lavalite_hosts), C(lavalite_pool_NAME) for each pool that they take from, and
    C(lavalite_state_STATE).
  - Each of C(lavalite_parts) has C(kind), C(amount), C(provider) and C(pool), and C(devices) and C(circuit) where
    there are some. Each of C(lavalite_circuits) has C(id), C(provider), C(bits_per_second) and C(links).
  - Where there is something to say, C(lavalite_reason) says why a host is not composed, and C(lavalite_degraded)
    lists the ids of the parts that it lost and goes on without.
  - A host that is composed is reached by way of the node that it is anchored on, as that is reached. A virtual
    machine is reached at its own address, as V(root), and takes no variable from the node.
  - A planned host has no address.
  - The cache is kept by the file's path. It saves reading, not asking, since the API says each time whether it still
    holds.
options:
  plugin:
    description: The name of this plugin.
    required: true
    choices: [lavalite.cluster.pools]
  cluster:
    description: The cluster's name.
    type: str
    required: true
  mode:
    description:
      - V(live) asks the API, and fails where it does not answer. V(plan) plans offline.
        V(auto) is live where the API answers, else it plans.
      - The environment variable E(LAVALITE_MODE) goes before the file, so that a cluster whose file says V(live)
        can be deployed for the first time with V(LAVALITE_MODE=plan).
    type: str
    choices: [live, plan, auto]
    default: live
  api:
    description: Addresses of the API. Any will do, the leader is followed.
    type: list
    elements: str
    default: []
  unix_socket:
    description: The API's Unix socket on this machine. A relative path begins at the file's folder.
    type: str
  token:
    description: The bearer token. It is refused in the file.
    type: str
    env:
      - name: LAVALITE_TOKEN
  token_path:
    description: A file that holds the token. A relative path begins at the file's folder.
    type: str
  ca_path:
    description: Certificates that vouch for the API, in PEM. A relative path begins at the file's folder.
    type: str
  timeout:
    description: For how long an API that does not answer is asked again, as V(10s).
    type: str
    default: 10s
extends_documentation_fragment:
  - constructed
  - inventory_cache
"""

EXAMPLES = r"""
plugin: lavalite.cluster.pools
cluster: rack1
mode: live
api: [https://ctl1:6880, https://ctl2:6880, https://ctl3:6880]

pools:
  general: {nodes: {group: lavalite_nodes}, kinds: [cpu, memory], default: true}
  gpus: {nodes: {group: lavalite_gpu}, kinds: [gpu]}

logical_hosts:
  trainer:
    count: 2
    gpu: {count: 4, model: A100, pool: gpus}
    cpu: 16
    memory: 128GiB

queues:
  normal: {priority: 30, policy: best-fit, default: true}

keyed_groups:
  - {key: lavalite_anchor, prefix: at}
"""

import os

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible_collections.lavalite.cluster.plugins.module_utils._amounts import seconds
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import client_from
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError, UnreachableError
from ansible_collections.lavalite.cluster.plugins.plugin_utils._document import Document, DocumentError
from ansible_collections.lavalite.cluster.plugins.plugin_utils._nodes import NodeVariables
from ansible_collections.lavalite.cluster.plugins.plugin_utils._populate import Population, RefusedName
from ansible_collections.lavalite.cluster.plugins.plugin_utils._text import plain

MARKER = "lavalite_pools_source"
FIELDS = "name,state,anchor,pools,parts,circuits,executor,address,degraded,reason"
MODE_VARIABLE = "LAVALITE_MODE"
FIRST_TIME = "If nothing is deployed yet, set LAVALITE_MODE=plan for this once."


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """read → validate → fetch or plan → plain dictionaries → populate. Nothing is added before all is known."""

    NAME = "lavalite.cluster.pools"

    def verify_file(self, path):
        name = os.path.basename(path)
        return super().verify_file(path) and (name == "pools.yml" or name.endswith(".pools.yml"))

    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path, cache)
        other = inventory.groups["all"].get_vars().get(MARKER)
        if other:
            raise AnsibleParserError("%s: %s is a source already. Keep one pools.yml an inventory." % (path, other))
        try:
            document = Document.read(path)
            self._read_config_data(path)
            nodes = NodeVariables(inventory, loader)
            source, hosts = self._hosts(document, nodes, path, cache)
            population = Population(inventory, nodes, path)
            population.check(hosts)
        except (ApiError, DocumentError, RefusedName) as error:
            raise AnsibleParserError(str(error)) from None
        population.add(source, hosts, document.pool_names)
        inventory.set_variable("all", MARKER, plain(os.path.abspath(path)))
        inventory.set_variable("all", "lavalite_cluster", self.get_option("cluster"))
        self._construct([host["name"] for host in hosts])

    def _hosts(self, document, nodes, path, cache):
        """("live" or "plan", hosts as the API describes them)."""
        mode = self._mode()
        if mode != "plan":
            try:
                return "live", self._live(path, cache)
            except UnreachableError as error:
                if mode == "live":
                    raise DocumentError("%s: %s %s" % (path, error, FIRST_TIME)) from None
                self.display.v("%s: planned, for %s" % (path, error))
        return "plan", document.plan(self.inventory, nodes)

    def _live(self, path, cache):
        """All hosts of the cluster. What is cached is asked for again by its tag, and used if that still holds."""
        client = client_from(self._connection(path), patience_seconds=self._patience_seconds())
        known_tag, known = self._cached(path) if cache else ("", [])
        try:
            return self._read(client, path, dict(fields=FIELDS), known_tag, known)
        except ApiError as error:
            # A scheduler of an earlier release, as before an upgrade, refuses the fields that it does not know.
            if error.faults[0].field != "fields":
                raise
            return self._read(client, path, {}, "", [])

    def _read(self, client, path, query, known_tag, known):
        tag, hosts = "", []
        for page in client.pages("/v1/hosts", query, known_tag):
            if page.status == 304:
                return known
            # The first page's tag: whatever changes while the others are read changes the tag that is asked with.
            tag = tag or page.etag
            hosts.extend(host for host in (page.body or {}).get("items", ()) if host.get("state") != "released")
        if tag and self.get_option("cache"):
            self._cache[self.get_cache_key(path)] = dict(tag=tag, hosts=hosts)
        return hosts

    def _cached(self, path):
        """(tag, hosts) of the last time, where the cache is on and still has them."""
        known = self._cache.get(self.get_cache_key(path)) if self.get_option("cache") else None
        if not (isinstance(known, dict) and known.get("tag") and isinstance(known.get("hosts"), list)):
            return "", []
        return known["tag"], known["hosts"]

    def _mode(self):
        """The environment's word, else the file's. Raises DocumentError."""
        mode = os.environ.get(MODE_VARIABLE) or self.get_option("mode")
        if mode not in ("live", "plan", "auto"):
            raise DocumentError("%s: %s is no mode. Set it to live, plan or auto." % (MODE_VARIABLE, mode))
        return mode

    def _patience_seconds(self):
        return 0.0 if self._mode() == "auto" else self._timeout_seconds()

    def _timeout_seconds(self):
        return float(seconds(self.get_option("timeout"), "timeout"))

    def _connection(self, path):
        """The shared connection options; paths begin at the file's own folder."""
        folder = os.path.dirname(os.path.abspath(path))
        options = dict(
            api=[str(url) for url in self.get_option("api")],
            token=self.get_option("token"),
            connect_timeout=self._timeout_seconds(),
        )
        for name in ("unix_socket", "token_path", "ca_path"):
            value = self.get_option(name)
            if value:
                options[name] = os.path.normpath(os.path.join(folder, os.path.expanduser(str(value))))
        return options

    def _construct(self, names):
        compose, groups, keyed = (self.get_option(name) for name in ("compose", "groups", "keyed_groups"))
        if not (compose or groups or keyed):
            return
        strict = self.get_option("strict")
        for name in names:
            self._set_composite_vars(compose, self.inventory.hosts[name].get_vars(), name, strict=strict)
            variables = self.inventory.hosts[name].get_vars()
            self._add_host_to_composed_groups(groups, variables, name, strict=strict, fetch_hostvars=False)
            self._add_host_to_keyed_groups(keyed, variables, name, strict=strict, fetch_hostvars=False)
