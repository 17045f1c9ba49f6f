"""What this node has for logical hosts: exports, disks, swap, circuits; made and taken away as the leader orders.

    book         pure: what stands × what is ordered → what to do, and what to report
    records      what stands, durable: one file per thing, written before it is begun
    attachments  the shell: carries the book out, one task per thing, looks after what is ready, reports
    roles        what a role has to be able to do (make, remove, check), and who has which
    parts        the roles that are made by root: export, disk, swap, circuit
    look         what sbatchd itself may see of them without rights: processes, mounts, connections
    runner       runs the root program where it is allowed to work
    root/        that program: one verb, one order, once

    PartsHere ──► Attachments.order ──► book ──► record written ──► role.make ──► record ──► PartsApplied
                                                                      role.check, every few seconds: lost

sbatchd is confined and does none of the work itself. The root program is the same whether systemd runs it as a unit
of its own or sbatchd as a child. Whatever it does it finds again by the thing's key, so a crash between any two steps
leaves nothing that `remove` would not find.
"""
