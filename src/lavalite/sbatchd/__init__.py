"""Execution on a node: the attempt journal, the keeper, the executors, the session with the leader.

    core, entry, events, actions   pure: what to do about each thing that happens
    journal                        what was promised, durable
    executors, process             the contract of executors; the one that is a client of the keeper
    keeper                         a small standard-library process that owns attempts and outlives the agent
    launch, output                 how an attempt is started on this node; reading and clearing what it wrote
    hosts, enter                   logical hosts that can be entered here, and how one is
    attach/                        what this node has for logical hosts: exports, disks, swap, circuits
    vm/                            logical hosts as virtual machines
    agent, session, daemon         the shell: carries actions out, talks to LIM and leader, is a process

sbatchd never starts, elects or supervises anything of the control plane.
"""
