"""The `systemd` executor: each attempt is a transient unit of the machine's systemd.

    executor.py  the contract of sbatchd.executors, carried out
    units.py     from a launch to a unit's properties; pure
    records.py   what is on disk about an attempt, and what became of it
    bus.py       systemd over D-Bus; the only file that imports dbus-fast
    service.py   the unit of fence.py
    begin.py     a script: the last steps before the attempt's program, as its user
    fence.py     a script: kills by deadline while sbatchd is dead or frozen

systemd limits, kills whole groups, enforces walltime and knows who has exited; nothing of ours is the attempts'
parent. What must outlive sbatchd is in one folder per attempt, written before what it tells of happens.

Here belongs what is peculiar to systemd. What every executor does is in executors.py one floor up.
"""

from lavalite.sbatchd.systemd.executor import SystemdExecutor

__all__ = ["SystemdExecutor"]
