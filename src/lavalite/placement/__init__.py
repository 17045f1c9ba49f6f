"""What should run where: filters that collect reasons, policies that choose, plans of logical hosts.

Pure: no I/O, no clock, no state of its own. "It does not fit" is a value with reasons, never an exception.
"""
