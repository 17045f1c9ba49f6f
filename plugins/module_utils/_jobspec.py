# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A job's spec from a module's options, and the key under which the same spec is submitted only once."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import hashlib
import json
import re

from ansible_collections.lavalite.cluster.plugins.module_utils import _amounts

_ARRAY = re.compile(r"^([0-9]{1,9})(?:-([0-9]{1,9})(?:[:/]([0-9]{1,9}))?)?$")
_AMOUNTS = (
    ("cpu", "cpu_milli", _amounts.milli),
    ("memory", "memory_bytes", _amounts.byte_count),
    ("gpu", "gpu_milli", _amounts.milli),
    ("gpu_memory", "gpu_memory_bytes", _amounts.byte_count),
    ("storage", "storage_bytes", _amounts.byte_count),
    ("network", "network_bits_per_second", _amounts.bits_per_second),
)
_NEEDS = tuple(option for option, _field, _parse in _AMOUNTS)
_NEEDS += ("gpu_model", "gpu_mig", "gpu_topology", "pools", "special", "floating")
_PLAIN = (
    "queue",
    "host",
    "reservation",
    "group",
    "policy",
    "priority",
    "retries",
    "rerunnable",
    "hold",
    "cwd",
    "stdout_path",
    "stderr_path",
)


def spec_of(params):
    """The API's JobSpec of the options; what was not given is left to the server. Raises ValueError."""
    spec = dict(name=params["name"], command=params["command"])
    for field in _PLAIN:
        if params.get(field) is not None:
            spec[field] = params[field]
    if params.get("array"):
        spec["array"] = _array(params["array"])
    request = _request(params)
    if request:
        spec["request"] = request
    if params.get("parts") is not None:
        spec["parts"] = [_part(item) for item in params["parts"]]
        twice = [name for name in ("array",) + _NEEDS if params.get(name) is not None]
        if twice:
            raise ValueError("parts and %s exclude each other: say it in each part" % twice[0])
    if params.get("walltime"):
        spec["walltime_seconds"] = _amounts.seconds(params["walltime"], "walltime")
    if params.get("grace"):
        spec["grace_seconds"] = _amounts.seconds(params["grace"], "grace")
    if params.get("start_within"):
        spec["start_within_seconds"] = _amounts.seconds(params["start_within"], "start_within")
    if params.get("gang") is not None:
        spec["gang"] = dict((name, value) for name, value in params["gang"].items() if value is not None)
    if params.get("affinity"):
        spec["affinity"] = [_affinity(item) for item in params["affinity"]]
    if params.get("retry_on") is not None:
        spec["retry_on"] = [str(code) for code in params["retry_on"]]
    if params.get("backoff"):
        spec["backoff"] = _backoff(params["backoff"])
    if params.get("depends"):
        spec["depends"] = [_dependency(item) for item in params["depends"]]
    if params.get("environment"):
        spec["environment"] = dict((str(k), str(v)) for k, v in params["environment"].items())
    return spec


def _part(item):
    found = dict(name=item["name"])
    for name in ("tasks", "command"):
        if item.get(name) is not None:
            found[name] = item[name]
    try:
        request = _request(item)
    except ValueError as error:
        raise ValueError("parts, %s: %s" % (item["name"], error)) from None
    if request:
        found["request"] = request
    return found


def _dependency(item):
    found = dict(job=item["job"], kind=item["kind"])
    if item.get("tasks"):
        found["tasks"] = _array(item["tasks"], "depends.tasks")
    if item.get("each"):
        found["each"] = True
    return found


def _affinity(item):
    found = dict((name, value) for name, value in item.items() if value is not None and name != "labels")
    if item.get("labels"):
        labels = item["labels"].items()
        found["labels"] = dict((str(k), [str(x) for x in v] if isinstance(v, list) else str(v)) for k, v in labels)
    return found


def _backoff(item):
    found = {}
    for name in ("first", "most"):
        if item.get(name) is not None:
            found[name + "_seconds"] = _amounts.seconds(item[name], "backoff." + name)
    if item.get("factor") is not None:
        found["factor"] = item["factor"]
    return found


def key_prefix(spec):
    """The same for the same spec, whoever runs the module and how often."""
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return "ansible-%s-" % hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:40]


def _request(params):
    request = {}
    for option, field, parse in _AMOUNTS:
        if params.get(option) is not None:
            request[field] = _amounts.asked(parse, params[option], option)
    for name in ("gpu_model", "gpu_mig", "gpu_topology", "exclusive"):
        if params.get(name):
            request[name] = params[name]
    if params.get("pools"):
        request["pools"] = dict((str(k), str(v)) for k, v in params["pools"].items())
    for place in ("special", "floating"):
        for name, value in (params.get(place) or {}).items():
            found = _amounts.asked(_amounts.count, value, "%s.%s" % (place, name))
            request.setdefault(place, {})[str(name)] = found
    return request


def _array(text, field="array"):
    match = _ARRAY.match(text.strip())
    if not match:
        raise ValueError("%s: %s is not understood. Write 1-8, or 0-100:10 for every tenth." % (field, text[:40]))
    first = int(match.group(1))
    return dict(first=first, last=int(match.group(2) or first), step=int(match.group(3) or 1))
