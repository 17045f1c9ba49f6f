"""Compute groups where no system runs: everything that a provider does, over a ledger and the engine.

provider    LedgerProvider: decide, commit, make; hooks: what its subclasses give
desk        one thing at a time is decided here, and others' writes are caught up with; listeners: who is told
phases      what is written before anything is made or removed, and after
waits       asks that wait for room; sweep: what dead processes left; utilization: what was measured
"""

from lavalite.groups.embedded.provider import LedgerProvider as LedgerProvider
