# -*- coding: utf-8 -*-
# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A process that outlives the module that started it, found again by its pid *and* its start time.

A pid alone may by now be another process. The record is a file of JSON:
`{"pid", "start_ticks", "boot_id", "digest"}`; start_ticks is field 22 of /proc/PID/stat.
"""

from __future__ import absolute_import, annotations, division, print_function

__metaclass__ = type

import hashlib
import json
import os
import signal
import subprocess

from ansible_collections.lavalite.cluster.plugins.module_utils._client import connect_unix
from ansible_collections.lavalite.cluster.plugins.module_utils._waiting import until

LOG_TAIL_BYTES = 4000
GONE = ("Z", "X", "x")


class DaemonError(Exception):
    """`str()` of it is a sentence for people."""


def digest_of(command, environment, config_paths, version):
    """Changes when anything changes that a running process would not notice by itself."""
    digest = hashlib.sha256(json.dumps([command, sorted(environment.items()), version]).encode("utf-8"))
    for path in config_paths:
        digest.update(digest_of_file(path))
    return digest.hexdigest()


def digest_of_file(path):
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).digest()
    except FileNotFoundError:
        return b"absent"


def read_record(record_path):
    """What the record says, if that process is alive; else None."""
    try:
        with open(record_path, encoding="utf-8") as file:
            record = json.load(file)
        pid, ticks = int(record["pid"]), int(record["start_ticks"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    alive = record.get("boot_id") == boot_id() and start_ticks(pid) == ticks
    return record if alive else None


def start_ticks(pid):
    """When the process was started, in clock ticks since boot; None where there is no such process any more."""
    try:
        with open("/proc/%d/stat" % pid, encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in GONE else int(fields[19])


def boot_id():
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start(command, environment, chdir, log_path, record_path, digest, ready_socket, timeout_seconds, settle_seconds):
    """Start it in a session of its own and wait until it is ready. Raises DaemonError with the end of its log.

    One without a socket is taken for ready when it has lived for `settle_seconds`.
    """
    with open(log_path, "ab") as log:
        before = log.tell()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=chdir or "/",
                env=dict(os.environ, **environment),
                start_new_session=True,
            )
        except OSError as error:
            raise DaemonError("%s cannot be started: %s." % (command[0], error.strerror)) from None
    record = dict(pid=process.pid, start_ticks=start_ticks(process.pid), boot_id=boot_id(), digest=digest)
    write_record(record_path, record)

    def ended_or_ready():
        if process.poll() is not None:
            return "ended"
        return "ready" if ready_socket and answers(ready_socket) else None

    seen = until(ended_or_ready, timeout_seconds if ready_socket else settle_seconds)
    if seen == "ended":
        text = "it ended at once, with exit code %d: %s" % (process.returncode, log_tail(log_path, before))
        raise DaemonError(text)
    if seen is None and ready_socket:
        text = "%s does not answer after %d s: %s" % (ready_socket, timeout_seconds, log_tail(log_path, before))
        raise DaemonError(text)
    return record


def stop(record, timeout_seconds):
    """TERM, and KILL once it is late. Answers whether it went by itself."""
    pid, ticks = int(record["pid"]), int(record["start_ticks"])

    def gone():
        return start_ticks(pid) != ticks

    for number, patience in ((signal.SIGTERM, timeout_seconds), (signal.SIGKILL, 10)):
        if gone():
            return True
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        except PermissionError:
            raise DaemonError("process %d is another user's. Run the module as that user." % pid) from None
        if until(gone, patience):
            return number == signal.SIGTERM
    raise DaemonError("process %d does not end, even when killed." % pid)


def write_record(record_path, record):
    temporary = "%s.new" % record_path
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(record, file)
    os.replace(temporary, record_path)


def answers(socket_path):
    try:
        connect_unix(socket_path, 1.0).close()
    except OSError:
        return False
    return True


def log_tail(log_path, since):
    """What was written to the log from `since` on, its end only."""
    with open(log_path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(since, size - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace").strip() or "its log is empty"
