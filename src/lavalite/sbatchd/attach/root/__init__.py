"""The root program: one verb for one part, once. `python -I …/attach/root/__main__.py VERB < REQUEST > ANSWER`

    __main__  verbs, the request, the lock of a part
    request   what it is asked, as sbatchd wrote it
    services  long-running programs (nbdkit, nbdfuse): units of systemd, or processes of their own session
    export    storage or memory of this node, served to one consumer
    disk      storage, of this node or from an export, as a mounted file system; one in place of another
    legs      what a disk's bytes are on: block devices; mapper: the device over them (dmsetup)
    swap      an export of memory, as swap
    circuit   bandwidth on the way to a peer (HTB)
    nbd       the kernel's NBD client over netlink; handshake: how NBD begins
    nft       the table `inet lavalite_parts`

It runs as root, where mounts are the machine's and devices may be made, and holds no state of its own: a thing is
found by its slug, wherever it was left. Without pydantic: under emulation and on a busy node each second is felt.
"""
