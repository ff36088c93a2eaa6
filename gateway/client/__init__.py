"""The Python subscriber: each message once and in order, over whatever gets through, and back without loss.

    from gateway.client import Message, Subscriber

    async with Subscriber("https://gateway.example", token, channels=["topic:news"]) as subscriber:
        async for event in subscriber:
            if isinstance(event, Message):
                print(event.channel, event.event, event.data)
"""

from gateway.client.frames import Event, Message, Reset, Unsubscribed
from gateway.client.reconnect import Refused, TokenExpired
from gateway.client.subscriber import Subscriber

__all__ = ["Event", "Message", "Refused", "Reset", "Subscriber", "TokenExpired", "Unsubscribed"]
