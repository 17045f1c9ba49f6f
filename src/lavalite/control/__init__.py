"""What should happen next: the cluster's state in memory and the reconcilers that observe it.

Pure: functions of (state, event, now) that return actions. mbatchd carries the actions out; nothing here does I/O
or reads a clock.
"""
