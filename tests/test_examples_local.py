"""examples/counter.py and examples/chat.py in this process, without Ray."""

import asyncio
import importlib.util
import json
from collections.abc import Awaitable, Callable
from types import ModuleType

import pytest
from served import EXAMPLES

import rayobjects as ro
from rayobjects.testing import LocalHost, LocalSocket


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


chat = example("chat")
counter = example("counter")


def on_a_host(test: Callable[[LocalHost], Awaitable[None]]) -> None:
    async def main() -> None:
        async with LocalHost([chat.Room, chat.RateLimit, counter.Counter]) as host:
            await test(host)

    asyncio.run(main())


def heard(socket: LocalSocket, kind: str) -> list[dict[str, object]]:
    """The events of this kind that a client has received."""
    return [event for event in map(json.loads, socket.received) if event["type"] == kind]


def test_counter() -> None:
    async def test(host: LocalHost) -> None:
        home = host.get("Counter", "home")
        assert await home.increment.remote() == 1
        assert await host.post(home, "increment", {"by": 2}) == 3
        await host.crash()
        assert await home.value.remote() == 3
        watching = aiter(home.watch.remote())
        for count in range(await home.value.remote(), 8):
            assert await anext(watching) == count
            await home.increment.remote()

    on_a_host(test)


def test_history_keeps_the_last_hundred() -> None:
    async def test(host: LocalHost) -> None:
        room = host.get("Room", "long")
        for number in range(1, 106):  # each user may say ten at once
            message = await room.say.remote(f"user {number // 5}", f"text {number}")
            assert message.number == number
        history = await room.history.remote()
        assert [message.number for message in history] == list(range(6, 106))
        assert history[-1].text == "text 105"

    on_a_host(test)


def test_the_same_key_is_one_message() -> None:
    async def test(host: LocalHost) -> None:
        room = host.get("Room", "twice")
        assert (await room.say.remote("ann", "hello", "k1")).number == 1
        await host.crash()
        assert await room.say.remote("ann", "hello", "k1") is None
        assert len(await room.history.remote()) == 1

    on_a_host(test)


def test_searching_holds_nobody_up_and_finds_what_was_said() -> None:
    async def test(host: LocalHost) -> None:
        room = host.get("Room", "found")
        await room.say.remote("ann", "Hello there")
        await room.say.remote("bob", "good bye")
        found = await host.post(room, "search", {"text": "hello"})
        assert [message["text"] for message in found] == ["Hello there"]

    on_a_host(test)


def test_the_rate_limit_is_the_users() -> None:
    """In all rooms together, and others go on."""

    async def test(host: LocalHost) -> None:
        said = []
        with pytest.raises(ro.MethodError, match="you write too fast"):
            await flood(host, said)
        assert chat.BURST <= len(said) < 2 * chat.BURST
        assert await host.get("Room", "0").say.remote("slow", "text")

    async def flood(host: LocalHost, said: list[int]) -> None:
        for number in range(3 * chat.BURST):
            await host.get("Room", str(number % 2)).say.remote("fast", "text")
            said.append(number)

    on_a_host(test)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("", "x", "a name has"), ("x" * 41, "x", "a name has"), ("x", " ", "a message has")],
)
def test_mistakes(name: str, text: str, message: str) -> None:
    async def test(host: LocalHost) -> None:
        room = host.get("Room", "mistakes")
        with pytest.raises(ro.MethodError, match=message):
            await room.say.remote(name, text)
        assert await room.history.remote() == []

    on_a_host(test)


def test_who_is_here() -> None:
    async def test(host: LocalHost) -> None:
        room = host.get("Room", "lobby")
        ann = await host.connect(room, query={"name": "ann"})
        bob = await host.connect(room, query={"name": "Bob"})
        assert heard(bob, "welcome")[0]["people"] == ["ann", "Bob"]
        assert heard(ann, "people")[-1]["people"] == ["ann", "Bob"]
        await host.evict(room)
        await bob.close()
        assert heard(ann, "people")[-1]["people"] == ["ann"]
        assert await room.people.remote() == ["ann"]

    on_a_host(test)


def test_messages_reach_everybody_once_though_the_host_dies() -> None:
    async def test(host: LocalHost) -> None:
        room = host.get("Room", "lobby")
        ann = await host.connect(room, query={"name": "ann"})
        bob = await host.connect(room, query={"name": "Bob"})
        for number in range(5):
            await bob.send(json.dumps({"text": f"text {number}", "key": str(number)}))
            await host.crash()
        await host.settled()
        history = [message.text for message in await room.history.remote()]
        assert history == [f"text {number}" for number in range(5)]
        for socket in (ann, bob):
            texts = [event["message"]["text"] for event in heard(socket, "message")]
            assert texts == history

    on_a_host(test)


def test_what_a_client_gets_wrong() -> None:
    async def test(host: LocalHost) -> None:
        room = host.get("Room", "lobby")
        ann = await host.connect(room, query={"name": "ann"})
        for data in ("no json", "[]", "{}", b"\xff"):
            await ann.send(data)
        await ann.send(json.dumps({"text": "x" * 1001, "key": "long"}))
        assert [event["key"] for event in heard(ann, "refused")] == ["", "", "", "", "long"]
        for number in range(chat.BURST + 1):
            await ann.send(json.dumps({"text": "x", "key": str(number)}))
        (wait,) = heard(ann, "wait")
        assert wait["key"] == str(chat.BURST)
        assert 0 < wait["wait_s"] <= 1
        await ann.send(json.dumps({"text": "x", "key": "0"}))
        assert heard(ann, "said") == [{"type": "said", "key": "0"}]
        with pytest.raises(ro.InvalidCall):
            await host.connect(room)

    on_a_host(test)
