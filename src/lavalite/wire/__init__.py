"""Frames between daemons, and the tokens that say who speaks.

Length-prefixed JSON frames over TCP and Unix sockets, node keys, assertions and tokens. Not here: what a daemon
does with a frame.
"""
