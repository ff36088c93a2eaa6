"""Presence by itself: what nodes vouch for and homes make of it, through everything that can happen between them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from gateway.message import Draft, Message, partition_of
from gateway.presence.entry import decode_entry, presence, table
from tests.support.presence import CHANNELS, GRACE, MOST, TICK, Home, Node, World, settle

USERS = [f"u{n}" for n in range(6)]


def once(told: list[tuple[str, str]]) -> bool:
    """Whether of each user a join and a leave take turns."""
    there: set[str] = set()
    for event, user in told:
        if (event == "join") == (user in there):
            return False
        there.symmetric_difference_update({user} if event != "update" else set())
    return True


def steps(world: World, rng: random.Random, homes: int) -> list[Callable[[], None]]:
    def alive_nodes() -> list[Node]:
        return [node for node in world.nodes.values() if not node.dead] or [Node(world, f"n{len(world.nodes)}")]

    def enter() -> None:
        node, user = rng.choice(alive_nodes()), rng.choice(USERS)
        node.enter(rng.choice(CHANNELS), user)

    def leave() -> None:
        node = rng.choice(alive_nodes())
        held = [place for place, number in node.sessions.items() if number]
        if held:
            node.leave(*rng.choice(held))

    def begin() -> None:
        if len(alive_nodes()) < 4:
            Node(world, f"n{len(world.nodes)}")

    def kill() -> None:
        rng.choice(alive_nodes()).dead = True

    def pause() -> None:
        node = rng.choice(alive_nodes())
        node.away = not node.away

    def node_works() -> None:
        for node in alive_nodes():
            if not node.away:
                node.hear(rng.randrange(4))
                node.tell(rng.randrange(4))

    def home_works() -> None:
        home = rng.choice(world.homes)
        home.hear(rng.randrange(5))
        if not home.ear:
            home.begin_rolls()
        # It may take nodes for dead that are not, and the other way round.
        wrong = rng.random() < 0.1
        home.call(None if rng.random() < 0.1 else set(sorted(world.alive())[: 1 if wrong else 9]))
        home.land(rng.randrange(4))

    def take_over() -> None:
        old = rng.choice(world.homes)
        if homes == 1:
            old.land()
            world.homes.remove(old)  # it is gone, with all it knew
        elif len(world.homes) >= homes:
            gone = world.homes.pop(0)
            gone.land(rng.randrange(9))
        Home(world)

    def clock() -> None:
        world.now += rng.choice([0.1, 0.5, 1.0, 3.0])

    often = [enter, leave, clock] * 2 + [node_works] * 3 + [home_works] * 4
    return [*often, begin, rng.choice([kill, begin]), pause, rng.choice([take_over, clock])]


@pytest.mark.parametrize("homes", [1, 3])
def test_whatever_happens_the_members_are_those_who_are_there_in_the_end(homes: int) -> None:
    for seed in range(150):
        rng = random.Random(seed)
        world = World()
        for name in "ab":
            Node(world, name)
        Home(world)
        works = steps(world, rng, homes)
        for _ in range(250):
            rng.choice(works)()
        for node in world.nodes.values():
            node.away = False
        settle(world)
        true = world.true_members()
        shown = world.shown()
        for channel in CHANNELS:
            expected = {place for place in true if place[0] == channel}
            found = {place for place in shown if place[0] == channel}
            assert found <= expected, f"seed {seed}: {found} of {expected}"
            assert len(found) == min(MOST, len(expected)), f"seed {seed}: {found} of {expected}"
            if homes == 1:
                assert once(world.told(channel)), f"seed {seed}: {world.told(channel)}"
        vouched = {
            (entry.channel, entry.user)
            for partition in range(2) for message in world.store.snapshot(table(partition)).messages
            if (entry := decode_entry(message.data)).on
        }  # fmt: skip
        assert shown <= vouched <= true, f"seed {seed}: what is over was not cleaned up"


def member(world: World, channel: str = "room:1") -> Message:
    [found] = world.store.snapshot(presence(channel)).messages
    return found


@pytest.fixture
def world() -> World:
    return World()


def test_who_stays_for_days_is_not_forgotten_by_the_store(world: World) -> None:
    node, home = Node(world, "a"), Home(world)
    node.enter("room:1", "ann")
    settle(world)
    for _ in range(3 * 24 * 4):
        world.now += 900
        world.store.sweep()
        node.hear()
        node.tell()
        home.settle()
    assert member(world).key == "ann"
    assert {event for event, _ in world.told("room:1")} == {"join", "update"}
    assert len(world.log) < 3 * 5, "a connection that stays costs five publishes a day at most"


def test_an_entry_that_the_store_lost_is_told_again_and_one_that_came_back_is_ended(world: World) -> None:
    node, home = Node(world, "a"), Home(world)
    node.enter("room:1", "ann")
    settle(world)
    old = world.store.snapshot(table(partition_of("room:1", 2))).messages
    node.vouches.snapshot(partition_of("room:1", 2), [])  # a store that has lost it
    assert len(node.vouches.dirty) == 1
    node.tell()
    node.leave("room:1", "ann")
    settle(world)
    assert not world.shown()
    assert len(node.vouches) == 0
    node.vouches.snapshot(partition_of("room:1", 2), old)  # one that was restored from a copy
    found = node.vouches.next()
    assert found is not None
    assert not decode_entry(found[1].data).on
    assert home.rolls.rolls["room:1"].entries == {}


def test_a_node_vouches_for_no_more_than_can_be_shown(world: World) -> None:
    node = Node(world, "a")
    for number in range(MOST + 3):
        node.enter("room:1", f"u{number}")
    node.tell()
    assert len(world.log) == MOST
    node.leave("room:1", "u0")
    node.leave("room:1", f"u{MOST}")  # one of those that wait
    world.now += GRACE + 1
    node.tell()
    node.tell()
    assert [decode_entry(message.data).user for message in world.log[MOST:]] == ["u0", f"u{MOST + 1}"]


def test_the_entries_of_a_home_that_was_mistaken_are_written_again(world: World) -> None:
    node, home = Node(world, "a"), Home(world)
    node.enter("room:1", "ann")
    settle(world)
    node.away = True
    for _ in range(20):
        world.now += TICK
        home.settle()
    assert world.told("room:1") == [("join", "ann"), ("leave", "ann")]
    node.away = False
    settle(world)
    assert world.told("room:1") == [("join", "ann"), ("leave", "ann"), ("join", "ann")]


def test_a_home_that_did_not_hear_itself_ends_nobody(world: World) -> None:
    node, home = Node(world, "a"), Home(world)
    node.enter("room:1", "ann")
    settle(world)
    for _ in range(20):
        world.now += TICK
        home.call(None)
        home.land()
    assert world.told("room:1") == [("join", "ann")]


def test_a_table_that_is_read_anew_ends_who_is_not_in_it(world: World) -> None:
    node, home = Node(world, "a"), Home(world)
    node.enter("room:1", "ann")
    settle(world)
    partition = partition_of("room:1", 2)
    [entry] = world.store.snapshot(table(partition)).messages
    home.rolls.begin(partition, [], world.now)
    gone = Draft(entry.channel, "clean", b"null", "x", key=entry.key, version=(1, 1), deleted=True)
    assert world.publish(gone) == ("stored", 0)
    world.nodes.clear()
    settle(world)
    assert world.told("room:1") == [("join", "ann"), ("leave", "ann")]


def test_a_vouch_is_a_sign_of_life(world: World) -> None:
    node, home = Node(world, "a"), Home(world)
    node.enter("room:1", "ann")
    settle(world)

    def call() -> None:
        world.now += TICK
        home.hear()
        home.call(set())
        home.land()

    for _ in range(20):
        call()
    assert world.told("room:1")[-1] == ("leave", "ann")
    node.hear()
    node.tell()  # though nobody has heard of the node itself yet
    for _ in range(4):
        call()
    assert world.told("room:1") == [("join", "ann"), ("leave", "ann"), ("join", "ann")]
    node.hear()
    assert not node.vouches.dirty, "its entry stands"


def call(home: Home, alive: set[str]) -> None:
    home.world.now += TICK
    home.call(alive)


def test_a_join_that_was_sent_is_waited_for(world: World) -> None:
    a, b, home = Node(world, "a"), Node(world, "b"), Home(world)
    a.enter("room:1", "ann")
    a.tell()
    home.hear()
    home.begin_rolls()
    call(home, {"a", "b"})
    b.enter("room:1", "ann")
    b.tell()
    a.leave("room:1", "ann")
    world.now += GRACE + 1
    a.tell()
    home.land()
    home.hear(2)  # of the other node and of the end of the first one's, not yet of the join
    call(home, {"a", "b"})
    home.land()
    settle(world)
    assert world.told("room:1") == [("join", "ann")]


def test_the_entries_of_who_may_have_been_told_stay_until_the_leave(world: World) -> None:
    node, home = Node(world, "a"), Home(world)
    node.enter("room:1", "ann")
    node.tell()
    home.hear()
    home.begin_rolls()
    call(home, {"a"})
    node.leave("room:1", "ann")
    world.now += GRACE + 1
    node.tell()
    home.land()
    home.hear(1)
    call(home, {"a"})
    home.land()
    assert world.store.snapshot(table(partition_of("room:1", 2))).messages, "another home would not know of her"
    settle(world)
    assert world.told("room:1") == [("join", "ann"), ("leave", "ann")]


def test_what_was_to_be_cleaned_up_and_is_there_again_stays(world: World) -> None:
    node, home = Node(world, "a"), Home(world)
    node.enter("room:1", "ann")
    settle(world)
    node.leave("room:1", "ann")
    world.now += GRACE + 1
    node.tell()
    while not any(change.kind == "clean" for change in home.flying):
        home.land()
        home.hear()
        call(home, {"a"})
    node.enter("room:1", "ann")
    node.tell()
    settle(world)
    assert [message.event for message in world.log if message.channel.startswith("ringcast:")] == ["vouch"] * 3
    assert world.told("room:1") == [("join", "ann"), ("leave", "ann"), ("join", "ann")]


def test_a_home_that_takes_a_node_for_alive_does_not_undo_what_another_ended(world: World) -> None:
    a, b, home = Node(world, "a"), Node(world, "b"), Home(world)
    a.enter("room:1", "ann")
    settle(world)
    b.enter("room:1", "ann")  # after the join: its entry is newer than what is told
    b.tell()
    a.leave("room:1", "ann")
    settle(world)
    other = Home(world)
    for _ in range(20):
        home.hear()
        call(home, set())
        home.land()
        if world.told("room:1")[-1] == ("leave", "ann"):
            break
    other.hear()
    call(other, {"a", "b"})
    other.land()
    assert world.told("room:1") == [("join", "ann"), ("leave", "ann")]
    settle(world)  # the node is alive: it vouches anew, and then she is there again
    assert world.told("room:1") == [("join", "ann"), ("leave", "ann"), ("join", "ann")]
