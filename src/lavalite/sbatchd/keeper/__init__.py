"""The keeper: a small process that owns running attempts and outlives sbatchd. Nothing but the standard library.

Started as `python -I -S …/keeper/__main__.py FOLDER`, it loads this package and no other module of ours, all of it
at once: so an upgrade of the agent does not pull code from under it. It is a child subreaper in a session of its own.
sbatchd speaks to it through the Unix socket FOLDER/keeper.sock, a JSON object a line:

    {"op": "start", "id": …, "argv": […], …}      {"op": "signal", "id": …, "signal": 15, "grace_seconds": 10, …}
    {"op": "list"}   {"op": "acknowledge", "id": …}   {"op": "contact", "sent": …}   {"op": "shutdown", "force": …}

Answers carry `reply` (the request's `n`), `op` and `id`; a request that is `quiet` has one only where it fails.
`{"event": "started"|"ended", "attempt": {…}}` goes to every client.

    start ──► gated ──► running ◄──► suspended ──► exited ──► ended ──► acknowledged, forgotten
              pid is durable         TERM, KILL    leftovers  told until acknowledged
              before the gate opens  by deadline   are killed

Nothing leaves this process before it is durable: each pass of the loop ends with one fsync, and only then are gates
opened and messages sent. All deadlines are CLOCK_BOOTTIME seconds, and are kept whether or not sbatchd lives.

    main, loop          the process; its loop and what it does on request
    clients             the socket: lines in, answers and events out
    roll, kept          all attempts and what is durable of them; one attempt and its deadlines
    launch              from the fork to the exec, as the attempt's user
    ending, reaping     walltime, fence, signals to all of an attempt; seeing it exit, and that nothing of it is left
    line_log, files     an append-only file that survives crashes; names of files, and the lock
    proc                clocks and processes as the kernel tells of them
"""

from pathlib import Path

PROGRAM = str(Path(__file__).with_name("__main__.py"))
"""What Python is to run, isolated (`-I -S`)."""
