"""Reminders: once, or again and again in your own time zone, and a page to make them on.

    rayobjects serve examples/reminders.py    then open http://127.0.0.1:8000/

Without the page:

    url=http://127.0.0.1:8000/objects/Reminders/ann
    curl $url/remind --json '{"text": "Tea", "after_s": 180}'
    curl $url/remind --json '{"text": "Doctor", "at": "2030-05-02T09:30:00+02:00"}'
    curl $url/remind --json '{"text": "Stand-up", "every": "0 9 * * 1-5", "zone": "Europe/Berlin"}'
    curl $url/upcoming --json '{}'
    curl $url/rung --json '{}'

Everybody's reminders are one object. It sleeps until one is due, and rings though everything was
stopped and started again meanwhile: late rather than never, and once.

This is the second version of the class. Whoever has reminders of the first one serves this file
with the same storage: `on_upgrade` converts each object when it wakes.
"""

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import rayobjects as ro

RUNG_KEPT = 50
TEXT_CHARACTERS_MAX = 200


@dataclass
class Reminder:
    """One that is to come.

    Attributes:
        key: names it, for `cancel`.
        due: when it rings, next.
        every: its cron expression; "" for once.
        zone: the time zone of that.
    """

    key: str
    text: str
    due: datetime
    every: str
    zone: str


@dataclass
class Rung:
    """One that has rung.

    Attributes:
        number: counts them, from 1.
        at: when it rang.
    """

    number: int
    text: str
    at: datetime


class Reminders(ro.DurableObject):
    """One person's reminders."""

    made: int = ro.durable(0)
    rang: int = ro.durable(0)
    texts: dict[str, str] = ro.durable(factory=dict)  # by key; only the first version fills it

    def on_upgrade(self, from_version: int) -> None:
        """The first version had all texts in one attribute, and wrote all of them anew with each
        reminder; now each has a key in the storage. Whether there is something to convert is seen
        from the state, so it does no harm that every other change of the class comes here, too."""
        for key, text in self.texts.items():
            self.storage[f"text/{key}"] = text
        self.texts = {}

    def remind(
        self,
        text: str,
        at: datetime | None = None,
        after_s: float | None = None,
        every: str | None = None,
        zone: str = "UTC",
    ) -> Reminder:
        """Makes a reminder: `at` a time, `after_s` seconds, or `every` time that a cron expression
        names in a time zone. If nothing could ring for a while, a recurring one rings once for all
        that it has missed.

        Raises:
            ValueError: there is no text, or too much.
        """
        text = text.strip()
        if not 0 < len(text) <= TEXT_CHARACTERS_MAX:
            raise ValueError(f"a reminder has 1 to {TEXT_CHARACTERS_MAX} characters")
        self.made += 1
        key = f"{self.made:06}"
        self.schedule(
            self._ring,
            key,
            key=key,
            at=at,
            after=None if after_s is None else timedelta(seconds=after_s),
            every=every,
            zone=zone,
            missed="last",
        )
        self.storage[f"text/{key}"] = text
        self._show()
        return next(each for each in self.upcoming() if each.key == key)

    def snooze(self, number: int, after_s: float = 600.0) -> Reminder:
        """Rings again what has rung.

        Raises:
            ValueError: there is no such number any more.
        """
        rung = self.storage.get(f"rung/{number:012}")
        if rung is None:
            raise ValueError(f"nothing that has rung has the number {number}")
        return self.remind(rung["text"], after_s=after_s)

    def cancel(self, key: str) -> bool:
        """Takes a reminder back; says whether there was one."""
        found = self.unschedule(key)
        self.storage.pop(f"text/{key}", None)
        self._show()
        return found

    def upcoming(self) -> list[Reminder]:
        """Those that are to come, the next one first."""
        return [
            Reminder(each.key, self.storage[f"text/{each.key}"], each.due, each.every, each.zone)
            for each in self.scheduled()
        ]

    def rung(self) -> list[Rung]:
        """The last ones that have rung, the newest first."""
        found = self.storage.list(prefix="rung/", reverse=True).values()
        return [
            Rung(each["number"], each["text"], datetime.fromisoformat(each["at"])) for each in found
        ]

    def on_connect(self, ws: ro.WebSocket) -> None:
        """A page is shown what there is, and every change."""
        ws.send(self._shown())

    def _ring(self, key: str) -> None:
        self.rang += 1
        text = self.storage[f"text/{key}"]
        self.storage[f"rung/{self.rang:012}"] = {
            "number": self.rang,
            "text": text,
            "at": self.now().isoformat(),
        }
        self.storage.pop(f"rung/{self.rang - RUNG_KEPT:012}", None)
        if not any(each.key == key and each.every for each in self.scheduled()):
            self.unschedule(key)
            del self.storage[f"text/{key}"]
        self._show()

    def _show(self) -> None:
        self.sockets.broadcast(self._shown())

    def _shown(self) -> str:
        shown: dict[str, Any] = {
            "now": self.now(),
            "upcoming": [asdict(each) for each in self.upcoming()],
            "rung": [asdict(each) for each in self.rung()],
        }
        return json.dumps(shown, default=datetime.isoformat, ensure_ascii=False)


pages = {"/": Path(__file__).with_name("reminders.html")}
