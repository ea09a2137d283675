"""The pages of examples/game.py, examples/reminders.py and examples/assistant.py in real browsers,
served together."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from served import EXAMPLES, Served
from test_examples_browser import ARGUMENTS, WITHIN_MS, kill_hosts_with_sockets

pytestmark = pytest.mark.timeout(300)

APP = f"""
import sys
sys.path.insert(0, {str(EXAMPLES)!r})
import assistant, game, reminders
from assistant import Assistant
from game import Game, Player
from reminders import Reminders
pages = {{
    "/": game.pages["/"],
    "/reminders": reminders.pages["/"],
    "/assistant": assistant.pages["/"],
}}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("pages")
    (directory / "all.py").write_text(APP)
    with Served(directory / "all.py", directory) as started:
        yield started


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


class Player:
    """Somebody with a page of the game."""

    def __init__(self, page: Page, url: str, name: str, table: str = "table") -> None:
        self.page = page
        self.sockets = 0
        page.on("websocket", lambda _: self._count())
        page.goto(f"{url}/#{table}")
        page.get_by_label("Your name").fill(name)
        page.get_by_role("button", name="Play", exact=True).click()
        expect(page.locator("#state")).to_have_text("connected", timeout=WITHIN_MS)

    def _count(self) -> None:
        self.sockets += 1

    def is_told(self, text: str) -> None:
        expect(self.page.locator("#says")).to_have_text(text, timeout=WITHIN_MS)

    def drop(self, column: int) -> None:
        self.is_told("Your turn")
        self.page.get_by_role("button", name=f"Column {column + 1}:").click()

    def sees(self, stones: int) -> list[str]:
        """The columns, as soon as there are so many stones."""
        expect(self.page.locator("#board .stone")).to_have_count(stones, timeout=WITHIN_MS)
        found = self.page.locator(".column").evaluate_all(
            "list => list.map((each) => each.getAttribute('aria-label'))"
        )
        return [str(each) for each in found]


def test_guarantee_6_a_game_of_two_while_its_host_is_killed(
    served: Served, browser: Browser, tmp_path: Path
) -> None:
    phone = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    dark = browser.new_context(color_scheme="dark").new_page()
    ann = Player(phone, served.url, "Ann")
    ann.is_told("Waiting for somebody to play with")
    bob = Player(dark, served.url, "Bob")
    moves = (3, 3, 2, 2, 4, 4)
    for number, column in enumerate(moves):
        if number == 3:
            kill_hosts_with_sockets(served)
        (bob if number % 2 else ann).drop(column)
    assert ann.sees(6) == bob.sees(6)
    ann.page.screenshot(path=tmp_path / "phone.png")
    eve = Player(browser.new_context().new_page(), served.url, "Eve")
    eve.is_told("Ann is to move: you watch")
    ann.drop(5)
    ann.is_told("You have won")
    for each in (bob, eve):
        each.is_told("Ann has won")
        expect(each.page.locator(".won")).to_have_count(4)
    bob.page.screenshot(path=tmp_path / "dark.png")
    expect(eve.page.get_by_role("button", name="Play again")).to_be_hidden()
    bob.page.get_by_role("button", name="Play again").click()
    assert ann.sees(0) == bob.sees(0)
    bob.drop(0)
    bob.page.reload()  # the same tab has the same seat
    bob.is_told("Ann is to move")
    assert ann.sees(1) == bob.sees(1)
    assert (ann.sockets, eve.sockets) == (1, 1)
    assert served.post("Player/Ann/record") == {"won": 1, "lost": 0, "drawn": 0}
    eve.page.get_by_role("button", name="New table").click()
    eve.is_told("Waiting for somebody to play with")
    (opened,) = served.post("Player/Eve/tables")
    assert eve.page.url == f"{served.url}/#{opened}"
    first = Player(browser.new_context().new_page(), served.url, "Eve", table="")
    first.is_told("Waiting for somebody to play with")
    assert [first.page.url.rpartition("#")[2], opened] == served.post("Player/Eve/tables")
    for each in (ann, bob, eve, first):
        each.page.close()


def test_reminders(served: Served, browser: Browser, tmp_path: Path) -> None:
    options = {"viewport": {"width": 390, "height": 844}, "timezone_id": "Europe/Berlin"}
    page = browser.new_context(**options).new_page()
    page.goto(f"{served.url}/reminders#ann")
    expect(page.locator("#state")).to_have_text("connected", timeout=WITHIN_MS)
    upcoming = page.locator("#upcoming li")

    def remind(text: str, when: str) -> None:
        page.get_by_label("Remind me of").fill(text)
        page.get_by_label("When", exact=True).select_option(when)
        page.get_by_role("button", name="Remind me").click()

    remind("<b>Tea</b>", "in an hour")
    expect(upcoming).to_have_count(1, timeout=WITHIN_MS)
    remind("Stand-up", "every weekday at …")
    expect(upcoming).to_have_count(2, timeout=WITHIN_MS)
    zone = re.compile(r"09:00.*again by 0 9 \* \* 1-5 in Europe/Berlin")
    expect(upcoming.filter(has_text="Stand-up")).to_have_text(zone)
    page.get_by_label("When", exact=True).select_option("by cron …")
    page.get_by_label("Cron expression").fill("nine")
    remind("Never", "by cron …")
    expect(page.locator("#notice")).to_contain_text("no cron expression", timeout=WITHIN_MS)
    page.get_by_role("button", name="Cancel: <b>Tea</b>").click()
    expect(upcoming).to_have_count(1, timeout=WITHIN_MS)
    served.post("Reminders/ann/remind", {"text": "Now", "after_s": 0})  # by somebody else
    expect(page.locator("#rung li.new")).to_contain_text("Now", timeout=WITHIN_MS)
    page.get_by_role("button", name="Again in 10 min: Now").click()
    expect(upcoming).to_have_count(2, timeout=WITHIN_MS)
    page.screenshot(path=tmp_path / "reminders.png")
    page.close()


def test_an_assistant_in_an_actor_of_its_own(
    served: Served, browser: Browser, tmp_path: Path
) -> None:
    """What it was taught is there again after its actor was killed."""
    phone = {"width": 390, "height": 844}
    page = browser.new_context(viewport=phone, color_scheme="dark").new_page()
    page.goto(f"{served.url}/assistant#ann")
    expect(page.locator("#empty")).to_be_visible(timeout=WITHIN_MS)
    talk = page.locator("#talk li")

    def ask(question: str) -> None:
        page.get_by_label("Question").fill(question)
        page.get_by_role("button", name="Ask").click()

    page.get_by_role("button", name="Teach").click()
    page.get_by_label("Text").fill("Cats <b>chase</b> red dots. Dogs chase blue cars.")
    page.get_by_role("dialog").get_by_role("button", name="Teach").click()
    expect(page.get_by_role("dialog")).to_be_hidden(timeout=WITHIN_MS)
    ask("What do cats do?")
    told = ["What do cats do?", "Cats <b>chase</b> red dots."]
    expect(talk).to_have_text(told, timeout=WITHIN_MS)
    status = json.loads(served.run("status", "--json").stdout)
    (pid,) = (each["figures"]["pid"] for each in status["hosts"] if each["name"] == "Assistant/ann")
    os.kill(pid, signal.SIGKILL)
    ask("And cars?")
    told += ["And cars?", "Dogs chase blue cars."]
    expect(talk).to_have_text(told, timeout=WITHIN_MS)
    expect(page.locator("li.coming")).to_have_count(0, timeout=WITHIN_MS)
    page.reload()
    expect(talk).to_have_text(told, timeout=WITHIN_MS)
    page.screenshot(path=tmp_path / "assistant.png")
    page.close()
