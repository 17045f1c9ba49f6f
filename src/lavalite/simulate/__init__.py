"""Scenarios in virtual time: the same `control` and `placement` as mbatchd, with another body around them.

    what is told    entries (how a scenario is spelled), scenario (read and checked), traces, draws (what is random)
    what happens    cluster (store, leader and network around `decide`), agents, faults, run (one run, start to end)
    what is seen    story (who decided what, line by line), measures, report; sweep (many runs), live, plot

Nothing here reads a clock, but for `live`; equal scenarios with equal seeds give equal output, byte for byte.
"""
