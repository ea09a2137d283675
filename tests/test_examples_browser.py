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
from served import EXAMPLES, Served, is_running, wait_until
from websockets.asyncio.client import ClientConnection, connect

pytestmark = pytest.mark.timeout(300)


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


def test_two_browsers_and_a_killed_host(served: Served, chromium: str, tmp_path: Path) -> None:
    """No message is lost and none shown twice; both pages show exactly the room's history, in its
    order, and go on over the same WebSocket. Then everything stops and starts again."""
    from playwright.sync_api import Page, sync_playwright

    def enter(page: Page, name: str) -> None:
        page.on("websocket", lambda socket: sockets.append(socket.url))
        page.goto(f"{served.url}/#lobby")
        page.fill("#name", name)
        page.click("#enter button")
        page.wait_for_selector("#state[data-state=open]")

    def say(page: Page, text: str) -> None:
        page.fill("#text", text)
        page.click("#send")

    def shown(page: Page) -> list[tuple[int, str]]:
        rows = page.eval_on_selector_all(
            "#messages li", "all => all.map(e => [e.dataset.number, e.lastChild.textContent])"
        )
        return [(int(number), text) for number, text in rows]

    def history() -> list[tuple[int, str]]:
        return [(each["number"], each["text"]) for each in served.post("Room/lobby/history")]

    def both_show_all(count: int) -> None:
        wait_until(lambda: all(len(shown(page)) >= count for page in pages), describe, 60)
        wait_until(
            lambda: all(page.locator("#pending li").count() == 0 for page in pages), describe
        )
        assert len(history()) == count
        assert shown(pages[0]) == shown(pages[1]) == history()

    def describe() -> str:
        """What the pages show, for a test that fails."""
        texts = [f"{page.inner_text('header')}: {shown(page)}" for page in pages]
        waiting = [page.locator("#pending li").all_inner_texts() for page in pages]
        return f"pages {texts}, pending {waiting}, history {history()}, sockets {sockets}"

    sockets: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        phone = {"width": 390, "height": 844}
        pages = [
            browser.new_context(viewport=phone).new_page(),
            browser.new_context(color_scheme="dark").new_page(),
        ]
        for page, name in zip(pages, ("ann", "bob"), strict=True):
            enter(page, name)
        assert pages[0].inner_text("#people") in ("2 here: ann, bob", "1 here: ann")
        for number in range(4):
            say(pages[number % 2], f"before {number}")
        both_show_all(4)

        status = json.loads(served.run("status", "--json").stdout)
        for host in status["hosts"]:
            if host["figures"].get("sockets"):
                os.kill(host["figures"]["pid"], signal.SIGKILL)
        for number in range(4):  # while nobody is there to hear it
            say(pages[number % 2], f"<i>during</i> {number}")
        both_show_all(8)
        for number in range(4):
            say(pages[number % 2], f"after {number}")
        both_show_all(12)
        assert len(sockets) == 2  # the same ones all the time
        assert pages[0].inner_text("#people") == "2 here: ann, bob"
        pages[0].screenshot(path=tmp_path / "phone.png")
        pages[1].screenshot(path=tmp_path / "dark.png")

        processes = served.processes()
        assert served.stop(signal.SIGINT) == 0
        wait_until(lambda: not any(map(is_running, processes)), "all processes have ended")
        pages[0].wait_for_selector("#state[data-state=closed], #state[data-state=connecting]")
        say(pages[0], "into the void")
        with Served(EXAMPLES / "chat.py", served.directory, served.port):
            both_show_all(13)
            assert shown(pages[0])[-1] == (13, "into the void")
        browser.close()
