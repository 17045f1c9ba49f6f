"""Membership and leadership: discovery, beats, the campaign, and the supervision of mbatchd.

core.py is pure and decides; the shell around it talks to the store, the sockets and the child process. Not here:
jobs, placement, or anything the scheduler decides.
"""
