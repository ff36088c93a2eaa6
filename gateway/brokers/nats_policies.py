"""Which policies a deployment on NATS keeps: one record, in the description of its first stream.

What streams keep is their own configuration, which the node that was started last has set (see `nats_streams`). This
record is for what is decided at each read or publish, and so that every node says it where nodes were given others.
"""

from __future__ import annotations

import logging
import time

from gateway.brokers import policies
from gateway.brokers.nats_api import Api
from gateway.brokers.nats_names import Names
from gateway.brokers.policies import Policies
from gateway.settings import Policy, Settings

log = logging.getLogger("ringcast.nats")

KEPT = "ringcast.policies"  # "generation record"


class NatsPolicies:
    def __init__(self, settings: Settings, names: Names) -> None:
        self.now = Policies.of_settings(settings)
        self._names = names
        self._stream = names.stream(0)

    def of(self, channel: str) -> Policy:
        return self.now.of(channel)

    async def agree(self, api: Api) -> None:
        """Look what counts. The first time this node's own does from then on; later it follows what is newer.

        Raises Away and ApiError.
        """
        info = await api.info(self._stream, self._names.nothing(0))
        number, _, record = info.config.metadata.get(KEPT, "").partition(" ")
        theirs = policies.decode(int(number), record.encode()) if record else None
        first = self.now.generation == 0
        if theirs is None or theirs.generation < self.now.generation:  # also where it went back with the stream's files
            await self._claim(api, self.now.generation)
        elif first and (changes := theirs.differences(self.now)):
            log.warning(
                "this deployment had another policy, and from now on has this node's: %s; give all nodes the same",
                "; ".join(changes),
            )  # fmt: skip
            await self._claim(api, theirs.generation)
        else:
            if changes := self.now.differences(theirs):
                log.warning(
                    "another node was started with another policy, which this node follows: %s; give all nodes the"
                    " same", "; ".join(changes),
                )  # fmt: skip
            self.now = theirs

    async def _claim(self, api: Api, above: int) -> None:
        mine = Policies(max(time.time_ns() // 1000, above + 1), self.now.namespaces)
        await api.describe(self._stream, KEPT, f"{mine.generation} {mine.encode().decode()}")
        self.now = mine
