"""LavaLite: pools of CPU, memory, GPU, storage and network, used as logical hosts.

The rooms, from the ground up; a room imports only lower floors, and siblings never import each other:

    6  cli                                       commands for people
    5  mbatchd                                   the scheduler service
    4  control | lim | sbatchd                   what should happen next | who leads | execution
    3  providers                                 where capacity comes from
    2  placement | ledger | wire | api           what runs where | who holds what | frames, tokens | /v1
    1  model | store                             what exists | where it is kept
    0  base                                      clock, errors, configuration, logging
"""

__version__ = "0.1.0"
