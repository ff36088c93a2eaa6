"""Who is there: the members of a channel, for namespaces that ask for it (`[channels.room] presence = true`).

What is told.  `presence:room:1` is a keyed channel like any other: a snapshot is the members of `room:1`, and what
    comes after it are the joins and leaves. The gateway alone publishes there; whoever may read `room:1` may read it.
Who counts.    A session that is subscribed to `room:1` with credentials that name a user. The key is the user: three
    tabs on two nodes are one member, who joins once, and leaves once when the last of them has gone. (With a key per
    connection every watcher would have to count, and would see a join and a leave for each reload of a page.) Backends
    with an API key have no user, and look on unseen; so does a user who subscribes to `presence:room:1` alone.
    `info` is the token's claim of that name, so that a page can show a face without asking anybody: that of the
    session which came last. An `info` that changes while the user stays is an `update`.
Vouching.      Each node vouches for its own users in a table that no client sees, `ringcast:presence.<partition>`: one
    entry for each user of a channel, however many connections (`vouches.py`). It counts while the node does: the node's
    own entry in `ringcast:nodes`, which is renewed anyhow, is the lease of all of them. So a connection that stays
    costs nothing (an entry is renewed twice in its life of a day), and 10,000 entries of a node that was killed end
    together, `presence_ttl` after it was last heard of.
Deciding.      The home of a partition compares what is vouched for with what is told, and publishes the difference
    (`roll.py`). It reads both from the store, from a snapshot on, so that any node can take over at any time.
Two homes, none, or a wrong one.  What a home publishes is guarded by the offsets of what it has seen: a join names that
    of the entry it follows from, everything else that of the value it replaces, and the store refuses it when another
    home was first. So nothing is told twice, what a stale home believes is refused, and a wrong ring only delays.
    An entry that is ended although its node is alive (it was paused, or cut from the store) is written again by
    that node, which follows the table too.
Judging.       A node that does not hear itself through the store, because it was paused or the store is away, is no
    judge of others: their leases begin anew when it does.
Grace.         A node goes on vouching for `presence_grace` after a user's last connection ended. Who comes back within
    it, to whichever node, has neither left nor joined. A node that ends says nothing about its users: its entries
    count for as long as those of one that was killed, and by then they are somewhere else.
Bounds.        A channel shows `presence_members` members. Whoever comes when it is full is served like everyone, and is
    not shown until one of those who are leaves. A node vouches for no more users of a channel than that either.
"""
