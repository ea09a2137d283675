"""The gateways that a host has to do with: the sockets that each holds for objects here, and the
messages that are on their way to it.

A gateway acknowledges messages with its next standing request; until then they wait in its outbox,
and in the storage. One that is silent for too long, or whose process is known to have ended, has
lost its sockets: their objects are told, and its messages are forgotten.

All of it is in the storage too, and the host that comes finds it there.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from rayobjects.errors import Overloaded
from rayobjects.ids import ObjectId
from rayobjects.limits import GATEWAY_SILENT_S, GATEWAY_SUSPECT_S, OUTBOX_MESSAGES_MAX
from rayobjects.messages import Poll, Push, Send
from rayobjects.objects.closings import Closings
from rayobjects.objects.outbox import Outbox
from rayobjects.storage.records import Record

if TYPE_CHECKING:
    from rayobjects.objects.host_channel import HostChannel
    from rayobjects.objects.host_core import HostCore


class Gateways:
    """Those of one host.

    Args:
        suspect: is told of each gateway that is silent, again and again.

    Attributes:
        sockets: gateway → (class, name, socket id) of every socket that it holds for objects here.
        outboxes: gateway → its messages.
        started_at: since when gateways could be heard, in monotonic seconds.
    """

    def __init__(self, core: HostCore, suspect: Callable[[str], None] | None) -> None:
        self.sockets: dict[str, set[tuple[str, str, str]]] = {}
        self.outboxes: dict[str, Outbox] = {}
        self.started_at = core.clock.monotonic()
        self._core = core
        self._suspect = suspect
        self._closings = Closings(core)
        self._dead: set[str] = set()  # gateways whose process has ended
        self._counted = 0  # the highest count of an outbox that was given up
        for id, socket, gateway in core.ledger.sockets():
            if not core.owns(id):
                continue  # its own actor has it
            self.sockets.setdefault(gateway, set()).add((*id, socket))
        for pending in core.ledger.pending():
            if not core.owns(ObjectId(pending.class_name, pending.name)):
                continue
            for index, send in enumerate(pending.sends):
                push = Push(pending.class_name, pending.name, pending.sequence, index, send)
                self._outbox(send.gateway).add(push)

    def committed(self, record: Record, sequence: int) -> None:
        """A record with sockets or socket messages is on disk: the messages may leave."""
        if record.delete:
            for held in self.sockets.values():
                held.difference_update(
                    [entry for entry in held if entry[:2] == (record.class_name, record.name)]
                )
        for change in record.sockets:
            held = self.sockets.setdefault(change.gateway, set())
            entry = (record.class_name, record.name, change.socket)
            if change.open:
                held.add(entry)
            else:
                held.discard(entry)
        for index, send in enumerate(record.sends):
            push = Push(record.class_name, record.name, sequence, index, send)
            self._outbox(send.gateway).add(push)
            channel = self._core.channels.get(send.gateway)
            if channel is not None:
                channel.wake()

    def check_outboxes(self, sends: list[Send]) -> None:
        """Raises Overloaded where a gateway is too far behind to be sent more."""
        for send in sends:
            outbox = self.outboxes.get(send.gateway)
            if outbox is not None and len(outbox) >= OUTBOX_MESSAGES_MAX:
                raise Overloaded(
                    f"{OUTBOX_MESSAGES_MAX:,} socket messages wait for a gateway: back off"
                )

    def outbox_for_poll(self, poll: Poll) -> Outbox | None:
        """The outbox of the asking gateway, after what its request acknowledges and says."""
        outbox = self.outboxes.get(poll.channel)
        if outbox is not None and poll.incarnation == self._core.incarnation:
            self._acknowledged(poll.channel, outbox, poll.pushed)
        return outbox

    def sockets_told(
        self, gateway: str, held_before: set[tuple[str, str, str]], told: list[tuple[str, str, str]]
    ) -> list[tuple[str, str, str]]:
        """A gateway says which sockets it holds: closes those that it has lost, and returns those
        that no object here knows.

        Args:
            held_before: those it held when its session began. What it says may come after later
                openings, which it does not name.
        """
        known = self.sockets.get(gateway, set())
        for entry in sorted((held_before & known).difference(told)):
            self._closings.close(entry, gateway)
        return [each for each in told if each not in known and self._core.owns(ObjectId(*each[:2]))]

    def died(self, gateway: str) -> None:
        """The process of a gateway has ended: its sockets are gone."""
        if gateway in self.sockets or gateway in self.outboxes:
            self._dead.add(gateway)
            self._close_silent(self._core.clock.monotonic())

    def _outbox(self, gateway: str) -> Outbox:
        outbox = self.outboxes.get(gateway)
        if outbox is None:
            outbox = self.outboxes[gateway] = Outbox(self._core.clock.monotonic(), self._counted)
        return outbox

    def heard(self, name: str, channel: HostChannel) -> None:
        """Something has come from this process."""
        channel.heard_at = self._core.clock.monotonic()
        outbox = self.outboxes.get(name)
        if outbox is not None:
            outbox.heard_at = channel.heard_at

    def _acknowledged(self, gateway: str, outbox: Outbox, count: int) -> None:
        """Forgets messages: a record's when the gateway has the last one that it is to have."""
        acknowledged = outbox.acknowledge(count)
        for push, following in pairwise([*acknowledged, outbox.first]):
            assert push is not None
            if following is None or _record_of(following) != _record_of(push):
                self._core.ledger.sent(ObjectId(push.class_name, push.name), push.sequence, gateway)

    def sweep(self, now: float) -> None:
        """Gives up gateways that are silent.

        Args:
            now: the monotonic time, in seconds.
        """
        self._close_silent(now)
        self._closings.sweep(now)

    def _close_silent(self, now: float) -> None:
        for gateway in sorted(self.sockets.keys() | self.outboxes.keys()):
            channel, outbox = self._core.channels.get(gateway), self.outboxes.get(gateway)
            heard_at = max(
                self.started_at,
                channel.heard_at if channel is not None else 0.0,
                outbox.heard_at if outbox is not None else 0.0,
            )
            if gateway not in self._dead and now - heard_at < GATEWAY_SILENT_S:
                if self._suspect is not None and now - heard_at >= GATEWAY_SUSPECT_S:
                    self._suspect(gateway)
                continue
            if channel is not None:
                channel.given_up = True
            for entry in sorted(self.sockets.get(gateway, ())):
                self._closings.close(entry, gateway)
            if not self.sockets.get(gateway):
                self.sockets.pop(gateway, None)
                self._dead.discard(gateway)
                if outbox is not None:
                    self._acknowledged(gateway, outbox, outbox.count)
                    self._counted = max(self._counted, outbox.count)
                    del self.outboxes[gateway]


def _record_of(push: Push) -> tuple[str, str, int]:
    return push.class_name, push.name, push.sequence
