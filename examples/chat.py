"""Chat rooms: who is here, what was said, and a page to say it on.

    rayobjects serve examples/chat.py         then open http://127.0.0.1:8000/

Every room is one object, every user's rate limit another. A room's people are its WebSockets; they
stay connected while the room sleeps, or while its host is killed and comes back.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rayobjects as ro

HISTORY_MESSAGES = 100
NAME_CHARACTERS_MAX = 40
TEXT_CHARACTERS_MAX = 1_000

BURST = 10
"""Messages that a user may write at once."""

PER_SECOND = 1.0
"""Messages that a user may write in the long run."""

NO_NAME = 4000
"""The code that a socket without a name is closed with."""


@dataclass
class Message:
    """What somebody said in a room.

    Attributes:
        number: counts the room's messages, from 1.
        name: who said it.
        text: plain text.
        at: when, in seconds since the epoch.
        key: made by the sender, so that the same message sent twice is one message.
    """

    number: int
    name: str
    text: str
    at: float
    key: str = ""


class RateLimit(ro.DurableObject):
    """How much one user may still write, in all rooms together: a bucket that fills up again."""

    left: float = ro.durable(float(BURST))
    seen_at: float = ro.durable(0.0)

    def take(self) -> float:
        """Takes one message out; the answer is 0, or how many seconds to wait for the next."""
        now = self.now().timestamp()
        left = min(BURST, self.left + (now - self.seen_at) * PER_SECOND)
        if left < 1:
            return (1 - left) / PER_SECOND
        self.left, self.seen_at = left - 1, now
        return 0.0


class Room(ro.DurableObject):
    """A chat room with its last 100 messages."""

    said: int = ro.durable(0)

    def history(self) -> list[Message]:
        """The last 100 messages, oldest first."""
        return [Message(**message) for message in self.storage.list(prefix="message/").values()]

    @ro.concurrent
    async def search(self, text: str) -> list[Message]:
        """What was said that contains a text. Runs beside the others, so it holds nobody up."""
        return [each for each in self.history() if text.casefold() in each.text.casefold()]

    def people(self) -> list[str]:
        """Who is here."""
        return self._people()

    async def say(self, name: str, text: str, key: str = "") -> Message | None:
        """Says something to everybody in the room; None if the same key was said before.

        Raises:
            ValueError: there is no name or no text, they are too long, or you write too fast.
        """
        name, text = name.strip(), text.strip()
        if not 0 < len(name) <= NAME_CHARACTERS_MAX:
            raise ValueError(f"a name has 1 to {NAME_CHARACTERS_MAX} characters")
        if not 0 < len(text) <= TEXT_CHARACTERS_MAX:
            raise ValueError(f"a message has 1 to {TEXT_CHARACTERS_MAX} characters")
        if key and any(message.key == key for message in self.history()):
            return None
        wait_s = await ro.namespace("RateLimit").get(name).take.remote()
        if wait_s:
            raise TooFast(wait_s)
        self.said += 1
        message = Message(self.said, name, text, self.now().timestamp(), key)
        self.storage[f"message/{message.number:012}"] = asdict(message)
        self.storage.pop(f"message/{message.number - HISTORY_MESSAGES:012}", None)
        self.sockets.broadcast(_event("message", message=asdict(message)))
        return message

    def on_connect(self, ws: ro.WebSocket) -> None:
        """Lets a client with a name in, and shows it the room."""
        name = ws.query.get("name", "").strip()[:NAME_CHARACTERS_MAX]
        if not name:
            ws.close(NO_NAME, "say who you are: ?name=…")
            return
        ws.attachment = {"name": name}
        messages = [asdict(message) for message in self.history()]
        ws.send(_event("welcome", room=self.id.name, messages=messages, people=self._people()))
        self.sockets.broadcast(_event("people", people=self._people()), exclude=ws)

    async def on_message(self, ws: ro.WebSocket, data: str | bytes) -> None:
        """A client says something: `{"text": …, "key": …}`."""
        try:
            said = json.loads(data)
            key, text = str(said["key"]), str(said["text"])
        except (ValueError, TypeError, KeyError):
            ws.send(_event("refused", key="", why='send {"text": …, "key": …}'))
            return
        try:
            message = await self.say(ws.attachment["name"], text, key)
        except TooFast as error:
            ws.send(_event("wait", key=key, wait_s=error.wait_s))
        except ValueError as error:
            ws.send(_event("refused", key=key, why=str(error)))
        else:
            if message is None:  # it was said before, and its sender has not heard of it
                ws.send(_event("said", key=key))

    def on_close(self, ws: ro.WebSocket, code: int, reason: str) -> None:
        """A client has left."""
        self.sockets.broadcast(_event("people", people=self._people(without=ws)))

    def _people(self, without: ro.WebSocket | None = None) -> list[str]:
        gone = without.id if without is not None else ""
        here = {ws.attachment["name"] for ws in self.sockets if ws.id != gone and ws.attachment}
        return sorted(here, key=str.casefold)


class TooFast(ValueError):
    """The user has to wait."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"you write too fast: wait {math.ceil(wait_s)} s")
        self.wait_s = wait_s

    def __reduce__(self) -> tuple[Any, ...]:
        return (TooFast, (self.wait_s,))


def _event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields}, ensure_ascii=False)


pages = {"/": Path(__file__).with_name("chat.html")}
