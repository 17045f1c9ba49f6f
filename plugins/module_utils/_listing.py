# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the `*_info` modules share: items by name or page by page, and no more of them than were asked for."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

from itertools import islice

from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import with_connection
from ansible_collections.lavalite.cluster.plugins.module_utils._client import PAGE_LIMIT, path_of
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError, Fault


def listing_arguments(**options):
    """The argument spec of a module that lists: its own options, `limit`, and how to reach the API."""
    return with_connection(limit=dict(type="int", default=1000), **options)


def named_listing_arguments(**options):
    """The same, and `name`, by which single items are found."""
    return listing_arguments(name=dict(type="list", elements="str", default=[]), **options)


def demand_limit(limit):
    """Raises ApiError for a limit of nothing."""
    if limit < 1:
        raise ApiError(0, [Fault("bad_input", "%d is none" % limit, "limit", "Write 1 or more.")])


def listed(client, collection, limit, query=None, names=None):
    """(at most `limit` items, whether there are more). With `names` those alone that there are, in that order."""
    demand_limit(limit)
    if names:
        found = (client.find(path_of(collection, name)) for name in names)
        return first_of((item for item in found if item is not None), limit)
    return first_of(client.items(path_of(collection), dict(query or {}, limit=min(PAGE_LIMIT, limit + 1))), limit)


def first_of(items, limit):
    """(the first `limit` of them, whether there are more)."""
    items = iter(items)
    found = list(islice(items, limit))
    return found, next(items, None) is not None


def either(words):
    """A filter that takes any of these; none where nothing is said."""
    return ",".join(words) if words else None
