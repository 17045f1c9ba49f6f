"""What should run where: filters that collect reasons, policies that choose, plans of logical hosts.

Pure: no I/O, no clock, no state of its own. "It does not fit" is a value with reasons, never an exception.

    what there is      columns (nodes as arrays), history (as they were), rows (some of them, for policies)
    what is asked for  classes (equal requests are one), closeness (GPUs that belong together)
    which node         policies, gpu_policies; registry (by name), ranking (one class), board (many at once)
    why not            filters, reasons; asleep (who need not be looked at again)
    afterwards         replay (a choice once more, from its record)
    logical hosts      compose (newcomers, resize, move, anchors, remote, assemble), floor and room (what is free of
                       nodes), fabric and wiring (of the network between them), shares (what a host holds)
"""
