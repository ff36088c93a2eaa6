"""A roll call: which connections a user has, on every node, and which nodes did not answer.

The question goes out on the channel of the nodes, which each of them hears: so one that holds none of the user's
connections can be told from one that does not answer. The answers come on the user's own channel, which few follow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import Problem
from gateway.message import VERBS, Draft, Message, format_time, new_id
from gateway.session import Calls

if TYPE_CHECKING:
    from gateway.node import Node

ROLL_CALL, ANSWER = "roll_call", "answer"  # the events of the two
WITHIN = 1.0  # seconds that a node has for its answer
MOST = 100  # connections that a node names

log = logging.getLogger("ringcast.cluster")


class Connection(msgspec.Struct):
    session: str
    node: str
    transport: str
    connected: str  # since when: RFC 3339
    subscriptions: int


class Answer(msgspec.Struct):
    """What one node says; `total` counts the connections too that it does not name."""

    question: str
    node: str
    total: int
    connections: list[Connection]


class Question(msgspec.Struct):
    user: str
    question: str
    node: str  # who asks


class Roll(msgspec.Struct):
    """What is told of a user: the nodes in `unanswered` may have connections of the user, or may be no more."""

    user: str
    total: int
    connections: list[Connection]
    unanswered: list[str]


_decode_answer = msgspec.json.Decoder(Answer).decode
_decode_question = msgspec.json.Decoder(Question).decode


class RollCall:
    def __init__(self, node: Node, channel: str) -> None:
        """`channel` is the one that every node hears."""
        self._node = node
        self._channel = channel

    async def take(self, user: str) -> Roll:
        """Ask every node. Raises Problem("unavailable") where the question cannot be asked."""
        node = self._node
        question = Question(user, new_id(), node.settings.node)
        answers = [self._answer(question)]
        expected = node.cluster.view.others(asyncio.get_running_loop().time())
        if not node.cluster.alone:
            await self._ask(question, expected, answers)
        answers.sort(key=lambda answer: answer.node)
        connections = [connection for answer in answers for connection in answer.connections]
        return Roll(user, sum(answer.total for answer in answers), connections, sorted(expected))

    async def _ask(self, question: Question, expected: set[str], answers: list[Answer]) -> None:
        """Gather answers until everyone who is expected has answered, or has had the time to."""
        node, channel, heard = self._node, VERBS + question.user, asyncio.Event()
        partition = node.broker.partition(channel)
        ear = node.own_session(Calls(heard.set))
        ear.opening = None
        try:
            async with asyncio.timeout(node.settings.open_within):
                await node.interest.follow({partition})
            node.hub.listen(ear, channel, partition, node.hub.partitions[partition].top)
            node.hub.pump(ear)
            await node.publish(Draft(self._channel, ROLL_CALL, msgspec.json.encode(question), question.question))
            async with asyncio.timeout(WITHIN):
                while expected:
                    await heard.wait()
                    heard.clear()
                    for item in ear.take():
                        if isinstance(item, Message) and item.event == ANSWER:
                            answer = _decode_answer(item.data)
                            if answer.question == question.question and answer.node in expected:
                                expected.discard(answer.node)
                                answers.append(answer)
                    node.sent(ear)
        except TimeoutError:
            if ear not in node.hub.sessions:
                raise Problem("unavailable", "The store does not answer: try again soon", retry_after=2) from None
        finally:
            node.leave(ear)

    def asked(self, message: Message) -> None:
        """Another node calls the roll: answer, also where there is nobody."""
        try:
            question = _decode_question(message.data)
        except msgspec.DecodeError as error:
            log.error("a roll call cannot be read by this version, and is not answered: %s", error)
            return
        if question.node != self._node.settings.node and time.time() - message.time / 1000 < 60:  # else nobody waits
            self._node.spawn(self._tell(question), "roll call")

    async def _tell(self, question: Question) -> None:
        data = msgspec.json.encode(self._answer(question))
        try:
            await self._node.publish(Draft(VERBS + question.user, ANSWER, data, new_id()))
        except Problem as problem:
            log.warning("a roll call could not be answered: %s", problem)

    def _answer(self, question: Question) -> Answer:
        node, now = self._node, asyncio.get_running_loop().time()
        sessions = sorted(node.users.of(question.user), key=lambda session: session.opened_at)
        connections = [
            Connection(
                session.id, node.settings.node, session.transport,
                format_time(round((time.time() - (now - session.opened_at)) * 1000)), len(session.channels),
            )
            for session in sessions[:MOST]
        ]  # fmt: skip
        return Answer(question.question, node.settings.node, len(sessions), connections)
