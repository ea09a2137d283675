"""The chat as its users have it: `rayobjects serve examples/chat.py`, sockets, and the page in two
real browsers while the room's host is killed (guarantees 4, 5 and 6)."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from served import EXAMPLES, Served, is_running, wait_until
from websockets.asyncio.client import ClientConnection, connect

pytestmark = pytest.mark.timeout(300)

WITHIN_MS = 60_000
BURST = 10
"""What the chat lets one write at once."""

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(EXAMPLES / "chat.py", tmp_path_factory.mktemp("chat")) as started:
        yield started


async def events(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next event of this kind; others are passed over."""
    async with asyncio.timeout(30):
        while True:
            event: dict[str, Any] = json.loads(await socket.recv())
            if event["type"] == kind:
                return event


def test_sockets(served: Served) -> None:
    async def main() -> None:
        url = served.url.replace("http", "ws") + "/objects/Room/a%2Froom"
        async with connect(f"{url}?name=ann") as ann:
            welcome = await events(ann, "welcome")
            assert (welcome["room"], welcome["people"]) == ("a/room", ["ann"])
            async with connect(f"{url}?name=Bob") as bob:
                assert (await events(bob, "welcome"))["people"] == ["ann", "Bob"]
                assert (await events(ann, "people"))["people"] == ["ann", "Bob"]
                text = "<b>&\"' \u2028 \N{SNOWMAN}"
                await bob.send(json.dumps({"text": text, "key": "k"}))
                for socket in (ann, bob):
                    message = (await events(socket, "message"))["message"]
                    assert (message["name"], message["text"]) == ("Bob", text)
                await bob.send(json.dumps({"text": text, "key": "k"}))
                assert (await events(bob, "said"))["key"] == "k"
                await bob.send("no json")
                assert "send" in (await events(bob, "refused"))["why"]
            assert (await events(ann, "people"))["people"] == ["ann"]
        async with connect(url) as nobody:
            await nobody.wait_closed()
            assert nobody.close_code == 4000

    asyncio.run(main())


class Person:
    """Somebody with a page of the chat, in a browser profile of their own."""

    def __init__(
        self, browser: Browser, url: str, name: str, room: str = "lobby", **options: Any
    ) -> None:
        self.name = name
        self.sockets = 0
        self.page: Page = browser.new_context(**options).new_page()
        self.page.on("websocket", lambda _: self._count())
        self.page.goto(f"{url}/#{room}")
        self.page.get_by_label("Your name").fill(name)
        self.page.get_by_role("button", name="Enter").click()
        self.is_shown("#state", "connected")

    def _count(self) -> None:
        self.sockets += 1

    def is_shown(self, selector: str, text: str) -> None:
        expect(self.page.locator(selector)).to_have_text(text, timeout=WITHIN_MS)

    def say(self, text: str) -> None:
        self.page.get_by_label("Message").fill(text)
        self.page.get_by_role("button", name="Send").click()

    def sees(self, messages: int) -> list[tuple[int, str, str]]:
        """What is shown (number, name, text), as soon as it is so many messages and none waits to
        be sent."""
        shown = self.page.locator("#messages li")
        expect(shown).to_have_count(messages, timeout=WITHIN_MS)
        expect(self.page.locator("#pending li")).to_have_count(0, timeout=WITHIN_MS)
        rows = shown.evaluate_all(
            "list => list.map(each => [each.dataset.number, ...['.who b', '.what'].map("
            "part => each.querySelector(part).textContent)])"
        )
        return [(int(number), name, text) for number, name, text in rows]


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


def history(served: Served, room: str) -> list[tuple[int, str, str]]:
    messages = served.post(f"Room/{room}/history")
    return [(each["number"], each["name"], each["text"]) for each in messages]


def kill_hosts_with_sockets(served: Served) -> None:
    status = json.loads(served.run("status", "--json").stdout)
    pids = [host["figures"]["pid"] for host in status["hosts"] if host["figures"].get("sockets")]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_name_of_spaces_is_asked_for_again(served: Served, browser: Browser) -> None:
    page = browser.new_context().new_page()
    page.goto(served.url)
    name = page.get_by_label("Your name")
    name.fill("   ")
    page.get_by_role("button", name="Enter").click()
    expect(page.locator("#who")).to_be_visible()
    assert "not a space" in name.evaluate("each => each.validity.patternMismatch && each.title")
    assert page.locator("#state").inner_text() == "not connected"
    name.fill(" Zoë ")
    page.get_by_role("button", name="Enter").click()
    expect(page.locator("#state")).to_have_text("connected", timeout=WITHIN_MS)
    expect(page.locator("#people")).to_have_text("1 here: Zoë", timeout=WITHIN_MS)
    page.close()


def test_who_writes_too_fast_waits_but_keeps_the_order(served: Served, browser: Browser) -> None:
    hasty = Person(browser, served.url, "hasty", "flood")
    said = [f"number {number}" for number in range(BURST + 4)]
    for text in said:
        hasty.say(text)
    expect(hasty.page.locator("#notice")).to_contain_text("A little slower", timeout=WITHIN_MS)
    assert [text for _, _, text in hasty.sees(len(said))] == said
    assert [text for _, _, text in history(served, "flood")] == said
    hasty.page.close()


def test_guarantee_6_two_browsers_and_a_killed_host(
    served: Served, browser: Browser, tmp_path: Path
) -> None:
    """No message is lost and none shown twice; both pages show exactly the room's history, in its
    order, and go on over the same WebSocket. Then everything stops and starts again."""
    phone = {"width": 390, "height": 844}
    ann = Person(browser, served.url, "ann", viewport=phone)
    bob = Person(browser, served.url, "bob", color_scheme="dark")
    ann.is_shown("#people", "2 here: ann, bob")
    said: list[tuple[str, str]] = []

    def both_say(text: str) -> None:
        for person in (ann, bob):
            person.say(f"{text} by <b>{person.name}</b>")
            said.append((person.name, f"{text} by <b>{person.name}</b>"))

    for number in range(2):
        both_say(f"before {number}")
    kill_hosts_with_sockets(served)
    for number in range(2):  # while nobody is there to hear it
        both_say(f"during {number}")
    both_say("after")

    shown = ann.sees(len(said))
    assert bob.sees(len(said)) == shown == history(served, "lobby")
    assert sorted((name, text) for _, name, text in shown) == sorted(said)
    for person in (ann, bob):  # what one has said, in the order in which it was said
        own = [(name, text) for _, name, text in shown if name == person.name]
        assert own == [each for each in said if each[0] == person.name]
    assert (ann.sockets, bob.sockets) == (1, 1)  # the same ones all the time
    ann.is_shown("#people", "2 here: ann, bob")
    ann.page.screenshot(path=tmp_path / "phone.png")
    bob.page.screenshot(path=tmp_path / "dark.png")

    bob.page.close()
    ann.is_shown("#people", "1 here: ann")
    processes = served.processes()
    assert served.stop(signal.SIGINT) == 0
    wait_until(lambda: not any(map(is_running, processes)), "all processes have ended")
    ann.page.wait_for_selector("#state[data-state=closed], #state[data-state=connecting]")
    ann.say("into the void")
    ann.say("and once more")
    with Served(EXAMPLES / "chat.py", served.directory, served.port) as again:
        number = len(said) + 1
        assert ann.sees(number + 1) == [
            *shown,
            (number, "ann", "into the void"),
            (number + 1, "ann", "and once more"),
        ]
        assert history(again, "lobby") == ann.sees(number + 1)
