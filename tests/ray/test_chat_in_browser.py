"""Guarantee 6 as people meet it: a chat in two browsers goes on while its host is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

pytestmark = pytest.mark.timeout(400)  # a busy machine takes its time to start Ray

EXAMPLE = Path(__file__).parents[2] / "examples" / "chat.py"
COMMAND = Path(sys.executable).with_name("rayobjects")
WITHIN_S = 60.0
WITHIN_MS = WITHIN_S * 1000
MESSAGES = 9
"""Of each of the two: fewer than the ten that the chat lets one write at once."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium here: `apt-get install chromium`, then run this test again")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Chat:
    """The chat as its user starts it, and what the command line says of it."""

    def __init__(self, port: int, environment: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._environment = environment

    def history(self, room: str) -> list[tuple[str, str]]:
        answer = httpx.post(f"{self.url}/objects/Room/{room}/history", timeout=WITHIN_S)
        assert answer.status_code == 200, answer.text
        return [(message["name"], message["text"]) for message in answer.json()]

    def kill_host_with_sockets(self, sockets: int) -> None:
        done = subprocess.run(
            [COMMAND, "status", "--json"],
            env=self._environment,
            stdout=subprocess.PIPE,
            timeout=WITHIN_S,
            check=True,
        )
        hosts = json.loads(done.stdout)["hosts"]
        (pid,) = [host["figures"]["pid"] for host in hosts if host["figures"]["sockets"] == sockets]
        os.kill(pid, signal.SIGKILL)


@contextmanager
def served(directory: Path) -> Iterator[Chat]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if "RAY" not in name}
    environment["RAYOBJECTS_CLUSTERS_DIRECTORY"] = str(directory / "clusters")
    storage = str(directory / "storage")
    with subprocess.Popen(
        [COMMAND, "serve", EXAMPLE, "--port", str(port), "--storage", storage],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = (line.split() for line in process.stdout)
            assert ["page", f"http://127.0.0.1:{port}/"] in lines
            yield Chat(port, environment)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(WITHIN_S)
    assert process.returncode == 0


class Person:
    """Somebody with a page of the chat."""

    def __init__(self, browser: Browser, chat: Chat, name: str) -> None:
        self.name = name
        self.page: Page = browser.new_context().new_page()
        self.sockets = 0
        self.page.on("websocket", lambda _: self._count())
        self.page.goto(chat.url)
        self.page.get_by_label("Your name").fill(name)
        self.page.get_by_role("button", name="Enter").click()
        expect(self.page.locator("#state")).to_have_text("connected", timeout=WITHIN_MS)

    def _count(self) -> None:
        self.sockets += 1

    def say(self, text: str) -> None:
        self.page.get_by_label("Message").fill(text)
        self.page.get_by_role("button", name="Send").click()

    def sees(self, messages: int) -> list[tuple[str, str]]:
        """What is shown, as soon as it is so many messages and none waits to be sent."""
        shown = self.page.locator("#messages li")
        expect(shown).to_have_count(messages, timeout=WITHIN_MS)
        expect(self.page.locator("#pending li")).to_have_count(0, timeout=WITHIN_MS)
        texts: list[list[str]] = shown.evaluate_all(
            "list => list.map(each => ['.who b', '.what'].map("
            "part => each.querySelector(part).textContent))"
        )
        return [(name, text) for name, text in texts]


def test_guarantee_6_a_chat_goes_on_while_its_host_is_killed(
    browser: Browser, tmp_path: Path
) -> None:
    with served(tmp_path) as chat:
        ada, bob = (Person(browser, chat, name) for name in ("Ada", "Bob"))
        expect(ada.page.locator("#people")).to_have_text("2 here: Ada, Bob", timeout=WITHIN_MS)
        said = set()
        for number in range(MESSAGES):
            if number == MESSAGES // 2:
                chat.kill_host_with_sockets(2)
            for person in (ada, bob):
                text = f"number {number} of <b>{person.name}</b>"
                person.say(text)
                said.add((person.name, text))

        # None lost, none twice, in one order, and over the WebSocket of the beginning.
        shown = ada.sees(len(said))
        assert set(shown) == said
        assert bob.sees(len(said)) == shown == chat.history("lobby")
        assert (ada.sockets, bob.sockets) == (1, 1)

        bob.page.close()
        expect(ada.page.locator("#people")).to_have_text("1 here: Ada", timeout=WITHIN_MS)
