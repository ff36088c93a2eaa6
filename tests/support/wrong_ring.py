"""`ringcast serve` on a node whose ring is wrong: RING=random, where each partition has any home, RING=empty, or
RING=own, where the node is home to all of them.

    RING=random python -m tests.support.wrong_ring serve ...
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable

from gateway import cluster
from gateway.cli import main
from gateway.ring import Ring


class WrongRing(Ring):
    def __init__(self, members: Iterable[str], partitions: int) -> None:
        known = list(members)
        super().__init__(known if os.environ["RING"] == "random" else [], partitions)
        self.homes = [random.choice(self.members) for _ in range(partitions)] if self.members else []
        if os.environ["RING"] == "own":
            self.homes = [os.environ["RINGCAST_NODE"]] * partitions
        self.shares = Counter(self.homes)
        self.hash = f"{random.getrandbits(64):016x}"


if __name__ == "__main__":
    cluster.Ring = WrongRing  # type: ignore[attr-defined]  # which takes it from there
    main()
