# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for a condition, with a deadline."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import time

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
COMPOSED = "composed"
FAILED = "failed"


def until(poll, timeout_seconds):
    """`poll()` until it answers with something true, and that; None when `timeout_seconds` have passed."""
    deadline = time.monotonic() + timeout_seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        found = poll()
        if found:
            return found
        if time.monotonic() + pause > deadline:
            return None
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)


def hosts_settled(client, wanted):
    """A poll for `until`: all hosts for which `wanted(host)` holds, once none of them is on its way any more."""

    def poll():
        hosts = [host for host in client.items("/v1/hosts") if wanted(host)]
        if all(host.get("state") in (COMPOSED, FAILED) for host in hosts):
            return dict(hosts=hosts)
        return None

    return poll


def unsettled_sentence(hosts):
    """Why hosts are not composed as they are asked for: a sentence for people, or nothing when all are.

    One that goes on without a part says so as well, and is what its entry asks for all the same.
    """
    late = [
        host for host in hosts if host.get("state") != COMPOSED or (host.get("reason") and not host.get("degraded"))
    ]
    return "; ".join(_how_far(host) for host in late[:20])


def _how_far(host):
    """`a is composing (attach): n01 does not answer`, with what is known of it."""
    step = " (%s)" % host["step"] if host.get("step") else ""
    return "%s is %s%s%s" % (
        host.get("name"),
        host.get("state"),
        step,
        ": " + host["reason"] if host.get("reason") else "",
    )
