# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What systemd says of a unit, and whether its process began before the files were as they are."""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import os
import subprocess
import time

from ansible_collections.lavalite.cluster.plugins.module_utils._process import start_ticks

PROPERTIES = ("LoadState", "ActiveState", "UnitFileState", "NeedDaemonReload", "MainPID")


def look(unit):
    """dict(there, active, enabled, reload, pid). All false where there is no such unit, or no systemd."""
    command = ["systemctl", "show", unit, "--property=" + ",".join(PROPERTIES)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
        )
    except OSError:
        return said("")
    return said(done.stdout.decode("utf-8", "replace"))


def said(text):
    """Out of what `systemctl show` prints."""
    found = dict(line.partition("=")[::2] for line in text.splitlines())
    pid = found.get("MainPID", "")
    return dict(
        there=found.get("LoadState") == "loaded",
        active=found.get("ActiveState") in ("active", "reloading"),
        enabled=found.get("UnitFileState") == "enabled",
        reload=found.get("NeedDaemonReload") == "yes",
        pid=int(pid) if pid.isdigit() else 0,
    )


def began(pid):
    """When a process began, as files' times are told now; None where there is none.

    From the time since the machine's start: a clock that was set since then does not matter.
    """
    ticks = start_ticks(pid) if pid else None
    if ticks is None:
        return None
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - (up - ticks / float(os.sysconf("SC_CLK_TCK")))


def newer(paths, moment):
    """Those of `paths` that were written after `moment`."""
    return [path for path in paths if os.path.exists(path) and os.path.getmtime(path) > moment]
