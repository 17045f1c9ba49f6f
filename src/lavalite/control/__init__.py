"""What should happen next: the cluster's state in memory and the reconcilers that observe it.

Pure: functions of (state, event, now) that return actions. mbatchd carries the actions out; nothing here does I/O
or reads a clock.

    in and out      events, decide, actions, outbox, admission, settings
    what there is   state over demand over supply; tasks, usage, records (as stored), restored, audit, retention
    whose turn      order, round, fairshare, decay, dependencies, gangs, retries, drain
    how much        limits, quotas, reclaim; preemption, parking, vacated (who ends, or is suspended, for others)
    where           scheduler, over the room `placement`; seating, affinity, neighbours, numa, workload, decisions
    when            reservations; planning, plan, find_start, ahead, horizon, dormant, estimates
    what becomes    starts, reports, wishes, health; hosts (a room of its own: logical hosts)
    what people see views, shares, explain
"""
