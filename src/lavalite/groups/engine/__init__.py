"""What decides about compute groups: what is free, what fits, quotas, who waits. Pure: no I/O, no clock.

    records ──► Picture (picture): all of them in memory, with the book, the columns and some indices kept up
    ask ──► wanted (what it means in classes of placement) ──► find (a free group, or new room) ──► decide ──► Changes
    life: what happens to groups that there are · nodes, pools, waiting · quotas · views (what people are shown)

A decision reads the picture and answers with Changes; who has made them durable applies them. The picture that is
kept up so equals the one that is read anew (held by a property test).
"""
