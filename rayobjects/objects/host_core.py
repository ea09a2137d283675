"""The host without Ray: activations, channels, and the ledger that they commit to.

It takes batches of calls and standing requests, and everything else follows from that. Nothing in
here knows whether its ledger is a shard in this process (shared hosting: thousands of objects) or
one behind Ray (dedicated hosting: one object).

When the journal fails or the epoch is lost, `fail` drops all activations and channels at once. The
core is of no use after that: its owner makes a new one, from what the storage has.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Protocol

from rayobjects.clock import Clock
from rayobjects.errors import (
    Cancelled,
    MethodError,
    Overloaded,
    RayObjectsError,
    StorageFailed,
    to_wire,
)
from rayobjects.ids import ObjectId
from rayobjects.limits import (
    ACTIVATIONS_MAX,
    FINISHED_CALLS_MAX,
    FINISHED_WINDOW_S,
    LATE_BATCH_S,
    STALLED_S,
)
from rayobjects.messages import (
    ERROR,
    JSON,
    OK,
    PROBE,
    Batch,
    Call,
    Poll,
    Replies,
)
from rayobjects.objects import arguments, cancelling, streams
from rayobjects.objects.activation import Activation
from rayobjects.objects.catalog import ObjectClass
from rayobjects.objects.changes import Changes
from rayobjects.objects.commit import Redirected, Respond
from rayobjects.objects.courier import Courier, Outgoing
from rayobjects.objects.deadlocks import Deadlocks
from rayobjects.objects.filters import Filter
from rayobjects.objects.forgetting import Forgetting
from rayobjects.objects.gateways import Gateways
from rayobjects.objects.host_channel import HostChannel
from rayobjects.objects.intents import Intents
from rayobjects.objects.lane import Lane
from rayobjects.objects.ledger import Ledger
from rayobjects.objects.others import Others
from rayobjects.objects.scheduler import Scheduler
from rayobjects.objects.threads import Threads
from rayobjects.objects.timers import Timers
from rayobjects.objects.under_way import RespondAll, UnderWay, limited, stopping
from rayobjects.randomness import seeded
from rayobjects.storage.records import INTENT, SCHEDULE, STEP, TELL, Promise, Record

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
            process lives, and to call `gateways.died` if not.
        outgoing: brings calls, of objects to others, to whatever host has them.
        wake: sees to it that an object with an actor of its own lives.
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
        outgoing: Outgoing,
        wake: Callable[[ObjectId], None] | None = None,
    ) -> None:
        self.ledger = ledger
        self.clock = clock
        self.incarnation = incarnation
        self.loop = asyncio.get_running_loop()
        self.lane = Lane()
        self.threads = Threads()
        self.on_lane = on_lane
        self.now = clock.now()
        self.idle_s = idle_s
        self.activations: dict[tuple[str, str], Activation] = {}
        self.channels: dict[str, HostChannel] = {}
        self.failed: StorageFailed | None = None
        self.filters: tuple[Filter, ...] | None = None
        self.released = False
        self.stopping = False
        self._activations_max = activations_max
        self._classes = classes
        self._owns = owns
        self._wake = wake
        self._promise_keys = itertools.count(1)
        self.random = seeded(incarnation)
        self.late_until = clock.monotonic() + LATE_BATCH_S
        """Until then what the process before has sent may still be on its way."""
        self.timers = Timers(clock)
        self.intents = Intents(self)
        self.forgetting = Forgetting(self)
        self.deadlocks = Deadlocks(self)
        self.submit_elsewhere = outgoing.submit
        self.scheduler = Scheduler(self)
        self.courier = Courier(self, outgoing)
        self.others = Others(self)
        self.streams = streams.Streams(self)
        self._by_id: dict[tuple[str, str, str], UnderWay] = {}
        self._confirms: list[Confirmed] = []
        self._empty = asyncio.Event()
        self._swept_at = clock.monotonic()
        self.gateways = Gateways(self, suspect)

    def begin(self) -> None:
        """Takes up what the objects have promised. To be called once, before any call comes in:
        calls that were begun go first."""
        promises = self.ledger.promises()
        for id, promise in promises:
            if promise.kind == INTENT:
                self.promised(id, promise)
        self.scheduler.begin(each for each in promises if each[1].kind == SCHEDULE)
        for id, promise in promises:
            if promise.kind == TELL:
                self.promised(id, promise)

    def promised(self, id: ObjectId, promise: Promise) -> None:
        """A promise that is on disk."""
        if promise.kind == SCHEDULE:
            self.scheduler.add(id, promise)
        elif promise.failed or not promise.open or promise.kind == STEP:
            return
        elif not self.owns(id):
            self.others.add(id)  # its own actor keeps it
        elif promise.kind == TELL:
            self.courier.add(id, promise)
        else:
            self.intents.run_again(id, promise)

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
        self.gateways.heard(batch.channel, channel)
        return await channel.deliver(batch)

    async def poll(self, poll: Poll) -> Replies:
        """Takes a standing request from a channel."""
        channel = self.channels.get(poll.channel)
        if self._has_failed() or channel is None:
            return Replies([], stale=True)
        self.now = self.clock.now()
        self.gateways.heard(poll.channel, channel)
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
        if call.encoding == PROBE:
            respond(OK, self.deadlocks.answer(call), 0)
            return
        key = (call.class_name, call.name)
        if call.timeout_s:
            respond = limited(self, self._by_id, call, respond)
        if explicit and call.encoding == JSON and not call.arguments_hash:
            call.arguments_hash = arguments.hash_of_json(call.method, call.args)
        if explicit or resent:
            # First those under way: of a concurrent one a part may be on disk, with an answer that
            # holds only if it does not come to its end.
            under_way = self._by_id.get((*key, call.id)) if self._by_id else None
            if under_way is not None:
                if arguments.differ(under_way.arguments_hash, call.arguments_hash):
                    respond(ERROR, to_wire(arguments.reused(call.id), with_cause=False), 0)
                elif not self.streams.taken_over(
                    call, lambda: self.submit(call, respond, explicit, resent)
                ):
                    under_way.append(respond)
                return
            finished = self.ledger.finished(ObjectId(*key), call.id)
            if finished is not None:
                if arguments.differ(finished.arguments_hash, call.arguments_hash):
                    respond(ERROR, to_wire(arguments.reused(call.id), with_cause=False), 0)
                else:
                    respond(*streams.repeated(call, finished))
                return
            refusal = self.intents.refusal(ObjectId(*key), call.id)
            if refusal is not None:
                respond(ERROR, to_wire(refusal, with_cause=False), 0)
                return
        if self.stopping and not (call.chain or call.held or self.intents.has(*key, call.id)):
            respond(ERROR, to_wire(stopping(), with_cause=False), 0)
            return
        if call.seen:  # of a stream that an earlier process had
            respond(ERROR, to_wire(streams.cut_off(call), with_cause=False), 0)
            return
        if explicit:
            by_id = (*key, call.id)
            if len(self._by_id) >= FINISHED_CALLS_MAX:
                error = Overloaded("too many calls are under way: back off and try again")
                respond(ERROR, to_wire(error, with_cause=False), 0)
                return
            self._by_id[by_id] = UnderWay(call.arguments_hash, respond)
            respond = RespondAll(self._by_id, by_id)
        self.resubmit(call, respond)

    def cancel(self, id: ObjectId, call_id: str, error: RayObjectsError) -> bool:
        """Ends a call that waits, or whose method awaits something: it is rolled back, and its
        caller gets the error. Returns whether that could be done."""
        activation = self.activations.get((id[0], id[1]))
        return activation is not None and cancelling.cancel(activation, call_id, error)

    def cancel_for_caller(self, id: ObjectId, call_id: str) -> None:
        """Ends a call that its caller has taken back, unless others wait for it too."""
        if not self.is_shared((id[0], id[1], call_id)):
            error = Cancelled(f"the call to {id} was cancelled by its caller, and rolled back")
            self.cancel(id, call_id, error)

    def is_shared(self, key: tuple[str, str, str]) -> bool:
        """Whether several wait for the call of this class, object name and id."""
        return len(self._by_id.get(key, ())) > 1

    def resubmit(self, call: Call, respond: Respond, again: bool = False) -> None:
        """Hands a call to its object's activation, making one where there is none.

        Args:
            again: it has been taken once, and is not refused because too many wait.
        """
        key = (call.class_name, call.name)
        activation = self.activations.get(key)
        if activation is None:
            if len(self.activations) >= self._activations_max:
                self._make_room()
            activation = Activation(self, ObjectId(*key))
            self.activations[key] = activation
            self.others.take_up(activation.id)
            self.intents.first(activation.id)
        activation.submit(call, respond, again)

    # -- for activations and their promises -----------------------------------------------------

    def owns(self, id: ObjectId) -> bool:
        """Whether the object lives here, as far as that is known without its class."""
        return self._owns(id, None)

    def wake(self, id: ObjectId) -> None:
        """An object with an actor of its own has something to do: sees to it that it lives."""
        if self._wake is not None:
            self._wake(id)

    def new_promise_key(self) -> str:
        """A key that no other promise has. May be called from any thread."""
        return f"{self.incarnation}.{next(self._promise_keys)}"

    def later(self, delay_s: float, run: Callable[[], None]) -> None:
        """Runs something after a pause of real time, if the host still lives then (by the host's
        own clock: `timers`)."""

        def due() -> None:
            if self.failed is None and not self.released:
                run()

        self.loop.call_later(delay_s, due)

    def note(self, record: Record, on_disk: Callable[[], None] = lambda: None) -> None:
        """Writes something that no caller waits for."""

        def noted(error: StorageFailed | None, sequence: int) -> None:
            if error is not None:
                self.fail(error)
            else:
                on_disk()

        try:
            self.ledger.commit(record, noted)
        except RayObjectsError as error:  # it stays as it was, and is found again
            self.report(error.message)

    def promised_elsewhere(self, record: Record) -> None:
        """An object with an actor of its own has written this: it may have to be woken in time."""
        for promise in record.promises:
            if promise.kind == SCHEDULE:
                self.scheduler.add(ObjectId(record.class_name, record.name), promise)

    @property
    def has_errands(self) -> bool:
        """Whether something is under way that no activation shows."""
        return self.courier.busy or self.intents.busy

    def check(self, id: ObjectId, changes: Changes) -> None:
        """Raises Overloaded where too much of what the object sends has not arrived yet."""
        if changes.sends:
            self.gateways.check_outboxes(changes.sends)
        if changes.promises:
            self.courier.check(id, changes.promises)

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
        """A record that does something outside of its object is on disk: it may be done."""
        for promise in record.promises:
            if promise.kind != INTENT or promise.due:  # else its call runs at this moment
                self.promised(ObjectId(record.class_name, record.name), promise)
        if record.sends or record.sockets or record.delete:
            self.gateways.committed(record, sequence)

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

    # -- life -------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """What time does: idle activations leave, silent gateways and channels are given up. To
        be called about once a second."""
        self.beat()
        self.timers.run_due()
        self.scheduler.sweep()
        now = self.clock.monotonic()
        idle_since = self.now - self.idle_s
        for activation in list(self.activations.values()):
            if activation.used_at <= idle_since and not activation.occupied:
                activation.retire()
        self.gateways.sweep(now)
        self.streams.sweep(now)
        for name, channel in list(self.channels.items()):
            if now - channel.heard_at > FINISHED_WINDOW_S:
                channel.abandon()
                del self.channels[name]

    def beat(self) -> None:
        """Takes note of the time; after a long pause nobody could be heard meanwhile."""
        self.now = self.clock.now()
        now = self.clock.monotonic()
        if now - self._swept_at > STALLED_S:
            self.gateways.started_at = now
        self._swept_at = now

    def refresh(self, class_names: set[str]) -> None:
        """These classes have a new version: their objects move to it between two calls."""
        for activation in list(self.activations.values()):
            if activation.id.class_name in class_names:
                activation.retire()
                self.streams.outdated(activation)

    def _make_room(self) -> None:
        """Too many live objects: a tenth of them leaves, the longest idle first."""
        idle = [activation for activation in self.activations.values() if not activation.occupied]
        idle.sort(key=lambda activation: activation.used_at)
        for activation in idle[: max(1, self._activations_max // 10)]:
            activation.retire()

    def fail(self, error: StorageFailed) -> None:
        """The journal failed or the epoch was lost: nothing that ran ahead of it may be seen."""
        if self.failed is not None:
            return
        self.failed = error
        self._keep_nothing()
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
        self._keep_nothing()
        self._abandon_channels()
        self.lane.close()
        self.threads.close()

    def _keep_nothing(self) -> None:
        """What is promised is for the next one to keep."""
        self.released = True
        self.timers.close()
        self.scheduler.close()
        self.courier.close()

    def _abandon_channels(self) -> None:
        channels, self.channels = self.channels, {}
        for channel in channels.values():
            channel.abandon()

    async def stop(self) -> None:
        """Lets every object leave (on_stop), after the calls that run and wait. Those that come
        meanwhile are refused, but for what is called by those that run."""
        self.forgetting.note()
        self.stopping = True
        self._keep_nothing()
        while self.activations and self.failed is None:
            self._empty.clear()
            self.streams.cut("its host is stopping")
            for activation in list(self.activations.values()):
                if not activation.busy:  # else it leaves by itself, when nothing waits any more
                    activation.retire()
            if self.activations:
                await self._empty.wait()
        self.release()
