"""The life of logical hosts whose parts come from several machines.

composer   what is asked for ──► plans ──► one commitment each; what is to go
steps      the step machine: which step a host is at, and when it goes on, or is unwound
moves      which parts may go elsewhere while the host is used
orders     pure: what each node is to have of a host at its step, and what has to be heard before it goes on
telling    which node is told what, and what becomes of parts that no record knows
loss       a host that is composed loses a part, and perhaps gets it back
growth     what the application inside may ask for, and has asked for
holding    sums: all that a host holds while it is resized, and what it offers to jobs meanwhile
"""
