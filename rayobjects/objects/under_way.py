"""Calls under way whose ids were given by their callers: all who ask for one get its answer."""

from __future__ import annotations

from rayobjects.messages import OPENED
from rayobjects.objects.commit import Respond


class UnderWay(list[Respond]):
    """Those who wait for a call whose id was given by its caller."""

    def __init__(self, arguments_hash: int, respond: Respond) -> None:
        super().__init__([respond])
        self.arguments_hash = arguments_hash


class RespondAll:
    """Answers everybody who sent a call of the same id."""

    __slots__ = ("_by_id", "_key")

    def __init__(
        self, by_id: dict[tuple[str, str, str], UnderWay], key: tuple[str, str, str]
    ) -> None:
        self._by_id = by_id
        self._key = key

    def __call__(self, status: int, body: bytes, sequence: int) -> None:
        if status >= OPENED:  # the last who asks reads the stream
            self._by_id[self._key][-1](status, body, sequence)
            return
        for respond in self._by_id.pop(self._key, ()):
            respond(status, body, sequence)
