"""Execution on a node: the attempt journal, the keeper, the executors, the session with the leader.

core.py is pure and decides; keeper.py is a small standard-library process that outlives the agent. sbatchd never
starts, elects or supervises anything of the control plane.
"""
