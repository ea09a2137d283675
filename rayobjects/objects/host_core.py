"""The host without Ray: activations, channels, and the ledger that they commit to.

It takes batches of calls and standing requests, and everything else follows from that. Nothing in
here knows whether its ledger is a shard in this process (shared hosting: thousands of objects) or
one behind Ray (dedicated hosting: one object).

When the journal fails or the epoch is lost, `fail` drops all activations and channels at once. The
core is of no use after that: its owner makes a new one, from what the storage has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

from rayobjects.clock import Clock
from rayobjects.errors import MethodError, Overloaded, StorageFailed, to_wire
from rayobjects.ids import ObjectId
from rayobjects.limits import (
    ACTIVATIONS_MAX,
    FINISHED_CALLS_MAX,
    FINISHED_WINDOW_S,
    GATEWAY_SILENT_S,
    GATEWAY_SUSPECT_S,
    OUTBOX_MESSAGES_MAX,
    STALLED_S,
)
from rayobjects.messages import (
    ERROR,
    Batch,
    Call,
    Poll,
    Push,
    Replies,
    Send,
)
from rayobjects.objects.activation import Activation
from rayobjects.objects.catalog import ObjectClass
from rayobjects.objects.closings import Closings
from rayobjects.objects.commit import Redirected, Respond
from rayobjects.objects.host_channel import HostChannel
from rayobjects.objects.lane import Lane
from rayobjects.objects.ledger import Ledger
from rayobjects.objects.outbox import Outbox
from rayobjects.storage.records import Record

logger = logging.getLogger("rayobjects")

Confirmed = Callable[[StorageFailed | None], None]


class Classes(Protocol):
    """Where a host gets its classes."""

    async def get(self, name: str) -> ObjectClass:
        """Raises InvalidCall where there is no such class, or it cannot be loaded here."""
        ...


class HostCore:
    """One host's objects.

    Args:
        owns: whether an object of this id and class lives here; else its calls are redirected.
        incarnation: names this life of the host.
        idle_s: after how many seconds without a call an activation leaves.
        on_lane: methods run on the lane, so that one which blocks for long does not keep the host
            from answering.
        suspect: is told of each gateway that is silent, again and again; to look whether its
            process lives, and to call `gateway_died` if not.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        classes: Classes,
        clock: Clock,
        owns: Callable[[ObjectId, ObjectClass | None], bool],
        incarnation: str,
        idle_s: float,
        on_lane: bool = False,
        activations_max: int = ACTIVATIONS_MAX,
        suspect: Callable[[str], None] | None = None,
    ) -> None:
        self.ledger = ledger
        self.clock = clock
        self.incarnation = incarnation
        self.lane = Lane()
        self.on_lane = on_lane
        self.now = clock.now()
        self.idle_s = idle_s
        self.activations: dict[tuple[str, str], Activation] = {}
        self.channels: dict[str, HostChannel] = {}
        self.outboxes: dict[str, Outbox] = {}
        self.sockets: dict[str, set[tuple[str, str, str]]] = {}
        self.failed: StorageFailed | None = None
        self._activations_max = activations_max
        self._suspect = suspect
        self._closings = Closings(self)
        self._dead: set[str] = set()  # gateways whose process has ended
        self._classes = classes
        self._owns = owns
        self._by_id: dict[tuple[str, str, str], list[Respond]] = {}
        self._confirms: list[Confirmed] = []
        self._counted = 0  # the highest count of an outbox that was given up
        self._empty = asyncio.Event()
        self._started_at = clock.monotonic()
        self._swept_at = self._started_at
        for id, socket, gateway in ledger.sockets():
            if not owns(id, None):
                continue  # its own actor has it
            self.sockets.setdefault(gateway, set()).add((*id, socket))
        for pending in ledger.pending():
            if not owns(ObjectId(pending.class_name, pending.name), None):
                continue
            for index, send in enumerate(pending.sends):
                push = Push(pending.class_name, pending.name, pending.sequence, index, send)
                self._outbox(send.gateway).add(push)

    # -- what comes in ------------------------------------------------------------------------

    async def deliver(self, batch: Batch) -> Replies:
        """Takes a batch of calls from a channel."""
        if self._has_failed():
            return Replies([], stale=True)
        self.now = self.clock.now()
        channel = self.channels.get(batch.channel)
        if channel is None:
            if batch.index != 0:
                return Replies([], stale=True)
            channel = HostChannel(self, batch.channel, batch.session)
            self.channels[batch.channel] = channel
        self._heard(batch.channel, channel)
        return await channel.deliver(batch)

    async def poll(self, poll: Poll) -> Replies:
        """Takes a standing request from a channel."""
        channel = self.channels.get(poll.channel)
        if self._has_failed() or channel is None:
            return Replies([], stale=True)
        self.now = self.clock.now()
        self._heard(poll.channel, channel)
        return await channel.poll(poll)

    def _has_failed(self) -> bool:
        """Also a ledger fails by itself: in a fold, or when it looks whether it is still the
        owner. Then nothing of this core is of use, whether it has a commit under way or not."""
        if self.failed is None and self.ledger.failed is not None:
            self.fail(self.ledger.failed)
        return self.failed is not None

    def submit(self, call: Call, respond: Respond, explicit: bool, resent: bool) -> None:
        """Runs a call on its object.

        Args:
            explicit: the call id was given by the caller, so another call may have the same.
            resent: an earlier process may have finished it.
        """
        key = (call.class_name, call.name)
        if explicit or resent:
            finished = self.ledger.finished(ObjectId(*key), call.id)
            if finished is not None:
                respond(finished.status, finished.reply, finished.sequence)
                return
        if explicit:
            by_id = (*key, call.id)
            others = self._by_id.get(by_id)
            if others is not None:
                others.append(respond)
                return
            if len(self._by_id) >= FINISHED_CALLS_MAX:
                error = Overloaded("too many calls are under way: back off and try again")
                respond(ERROR, to_wire(error, with_cause=False), 0)
                return
            self._by_id[by_id] = [respond]
            respond = _RespondAll(self._by_id, by_id)
        self.resubmit(call, respond)

    def resubmit(self, call: Call, respond: Respond) -> None:
        """Hands a call to its object's activation, making one where there is none."""
        key = (call.class_name, call.name)
        activation = self.activations.get(key)
        if activation is None:
            if len(self.activations) >= self._activations_max:
                self._make_room()
            activation = Activation(self, ObjectId(*key))
            self.activations[key] = activation
        activation.submit(call, respond)

    def submit_socket_close(self, class_name: str, name: str, socket: str, gateway: str) -> None:
        """A socket is gone though its gateway never said so."""
        self._closings.close((class_name, name, socket), gateway)

    # -- for activations ------------------------------------------------------------------------

    async def class_for(self, id: ObjectId) -> ObjectClass:
        """The class of an object that is to live here.

        Raises:
            InvalidCall: unknown or cannot be loaded.
            Redirected: its objects live elsewhere.
        """
        if not self._owns(id, None):
            raise Redirected
        object_class = await self._classes.get(id.class_name)
        if not self._owns(id, object_class):
            raise Redirected
        return object_class

    def confirm(self, confirmed: Confirmed) -> None:
        """Shows that the epoch still holds, for all reads of this tick at once."""
        self._confirms.append(confirmed)
        if len(self._confirms) == 1:
            asyncio.get_running_loop().call_soon(self._confirm_all)

    def _confirm_all(self) -> None:
        confirms, self._confirms = self._confirms, []

        def done(error: StorageFailed | None, _: int) -> None:
            if error is not None:
                self.fail(error)
            for confirmed in confirms:
                confirmed(error)

        self.ledger.confirm(done)

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
            channel = self.channels.get(send.gateway)
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

    def dropped(self, activation: Activation) -> None:
        """The activation has left."""
        key = (activation.id.class_name, activation.id.name)
        if self.activations.get(key) is activation:
            del self.activations[key]
        if not self.activations:
            self._empty.set()

    def raised(self, target: str, error: BaseException) -> MethodError:
        """The error for whoever called `target`; also logged, for whoever wrote it."""
        wrapped = MethodError.of(target, error)
        logger.error(wrapped.message, extra={"traceback": wrapped.traceback})
        return wrapped

    def report(self, message: str) -> None:
        """Says what no caller hears."""
        logger.error(message)

    # -- gateways ---------------------------------------------------------------------------------

    def outbox_for_poll(self, poll: Poll) -> Outbox | None:
        """The outbox of the asking gateway, after what its request acknowledges and says."""
        outbox = self.outboxes.get(poll.channel)
        if outbox is not None and poll.incarnation == self.incarnation:
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
            self.submit_socket_close(*entry, gateway)
        return [
            each for each in told if each not in known and self._owns(ObjectId(*each[:2]), None)
        ]

    def gateway_died(self, gateway: str) -> None:
        """The process of a gateway has ended: its sockets are gone."""
        if gateway in self.sockets or gateway in self.outboxes:
            self._dead.add(gateway)
            self._close_silent_gateways(self.clock.monotonic())

    def _outbox(self, gateway: str) -> Outbox:
        outbox = self.outboxes.get(gateway)
        if outbox is None:
            outbox = self.outboxes[gateway] = Outbox(self.clock.monotonic(), self._counted)
        return outbox

    def _heard(self, name: str, channel: HostChannel) -> None:
        channel.heard_at = self.clock.monotonic()
        outbox = self.outboxes.get(name)
        if outbox is not None:
            outbox.heard_at = channel.heard_at

    def _acknowledged(self, gateway: str, outbox: Outbox, count: int) -> None:
        """Forgets messages: a record's when the gateway has the last one that it is to have."""
        acknowledged = outbox.acknowledge(count)
        for push, following in pairwise([*acknowledged, outbox.first]):
            assert push is not None
            if following is None or _record_of(following) != _record_of(push):
                self.ledger.sent(ObjectId(push.class_name, push.name), push.sequence, gateway)

    def _close_silent_gateways(self, now: float) -> None:
        for gateway in sorted(self.sockets.keys() | self.outboxes.keys()):
            channel, outbox = self.channels.get(gateway), self.outboxes.get(gateway)
            heard_at = max(
                self._started_at,
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
                self.submit_socket_close(*entry, gateway)
            if not self.sockets.get(gateway):
                self.sockets.pop(gateway, None)
                self._dead.discard(gateway)
                if outbox is not None:
                    self._acknowledged(gateway, outbox, outbox.count)
                    self._counted = max(self._counted, outbox.count)
                    del self.outboxes[gateway]

    # -- life -------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """What time does: idle activations leave, silent gateways and channels are given up. To
        be called about once a second."""
        self.beat()
        now = self.clock.monotonic()
        idle_since = self.now - self.idle_s
        for activation in list(self.activations.values()):
            if activation.used_at <= idle_since and not activation.busy:
                activation.retire()
        self._close_silent_gateways(now)
        self._closings.sweep(now)
        for name, channel in list(self.channels.items()):
            if now - channel.heard_at > FINISHED_WINDOW_S:
                channel.abandon()
                del self.channels[name]

    def beat(self) -> None:
        """Takes note of the time; after a long pause nobody could be heard meanwhile."""
        self.now = self.clock.now()
        now = self.clock.monotonic()
        if now - self._swept_at > STALLED_S:
            self._started_at = now
        self._swept_at = now

    def refresh(self, class_names: set[str]) -> None:
        """These classes have a new version: their objects move to it between two calls."""
        for activation in list(self.activations.values()):
            if activation.id.class_name in class_names:
                activation.retire()

    def _make_room(self) -> None:
        """Too many live objects: a tenth of them leaves, the longest idle first."""
        idle = [activation for activation in self.activations.values() if not activation.busy]
        idle.sort(key=lambda activation: activation.used_at)
        for activation in idle[: max(1, self._activations_max // 10)]:
            activation.retire()

    def fail(self, error: StorageFailed) -> None:
        """The journal failed or the epoch was lost: nothing that ran ahead of it may be seen."""
        if self.failed is not None:
            return
        self.failed = error
        logger.error("storage failed: %s", error)
        if error.details.keys() & {"lost", "restart"}:
            # Another owner, or this one begun anew, will answer: channels ask there.
            self._abandon_channels()
        for channel in self.channels.values():
            channel.wake()  # or gateways would wait for POLL_S before they find out
        activations, self.activations = self.activations, {}
        for activation in activations.values():
            activation.abandon()
        self._empty.set()

    def release(self) -> None:
        """After `fail`: ends the channels; what they have no answer to, they send again."""
        self._abandon_channels()
        self.lane.close()

    def _abandon_channels(self) -> None:
        channels, self.channels = self.channels, {}
        for channel in channels.values():
            channel.abandon()

    async def stop(self) -> None:
        """Lets every object leave (on_stop), after the calls that run and wait."""
        while self.activations and self.failed is None:
            self._empty.clear()
            for activation in list(self.activations.values()):
                activation.retire()
            if self.activations:
                await self._empty.wait()
        self.release()


class _RespondAll:
    """Answers everybody who sent a call of the same id."""

    __slots__ = ("_by_id", "_key")

    def __init__(
        self, by_id: dict[tuple[str, str, str], list[Respond]], key: tuple[str, str, str]
    ) -> None:
        self._by_id = by_id
        self._key = key

    def __call__(self, status: int, body: bytes, sequence: int) -> None:
        for respond in self._by_id.pop(self._key, ()):
            respond(status, body, sequence)


def _record_of(push: Push) -> tuple[str, str, int]:
    return push.class_name, push.name, push.sequence
