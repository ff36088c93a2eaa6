"""Ringcast's publisher SDK: publish messages to a gateway over HTTP.

    from publisher import Publisher

    with Publisher("http://127.0.0.1:8000", key) as publisher:
        receipt = publisher.publish("user:42", {"order": 7}, event="order.shipped")
"""

from publisher.client import AsyncPublisher, Publisher
from publisher.errors import InvalidMessage, PublishError, Refused, TargetsFailed, Unavailable
from publisher.exchange import Retry
from publisher.message import Message, Outcome, Receipt, partition
from publisher.verbs import Connection, Connections

__all__ = [
    "AsyncPublisher",
    "Connection",
    "Connections",
    "InvalidMessage",
    "Message",
    "Outcome",
    "PublishError",
    "Publisher",
    "Receipt",
    "Refused",
    "Retry",
    "TargetsFailed",
    "Unavailable",
    "partition",
]
