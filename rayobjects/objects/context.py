"""The running call, as the stubs that it uses see it.

A stub that is used inside a method must know for whom it calls: the call's id gives the child's id,
the chain of waiting objects shows a circle, and the activation says when its writes are on disk.
A context variable carries that through awaits and tasks, and to the lane of large objects.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from rayobjects.errors import RayObjectsError, Unavailable
from rayobjects.messages import Call
from rayobjects.objects import carried, intents
from rayobjects.objects.arguments import hash_of
from rayobjects.objects.promised import told_to
from rayobjects.randomness import Random, seeded

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation
    from rayobjects.objects.concurrency import Concurrent

NO_CALL = Call(0, "", "", "", 0, b"")
"""Stands for what the runtime runs by itself (on_start, on_stop). It has no id, for it is not run
again by the host when that has died."""


class CallContext:
    """What a call hands down to the calls that it makes.

    Attributes:
        call: the running call; its id is "" where it has none.
        now: when it first began, in seconds since the epoch.
        begun: what is journaled of it; None until it calls another object.
        concurrent: how it runs without the object's turn; None if it has that.
        ending: why it is being cancelled; None while it is not.
        started: its task has begun; one that has not must not be cancelled, for it would never run.
        closed: its method has ended; a task that outlives it is nobody's.
        hook: names it among others if it is no call but a hook; "" for calls.
        awaits: id → (class, name) of the calls that it made and awaits at this moment.
    """

    __slots__ = (
        "_children",
        "_ended",
        "_names",
        "_position",
        "_random",
        "activation",
        "awaits",
        "begun",
        "call",
        "closed",
        "concurrent",
        "ending",
        "hook",
        "now",
        "started",
    )

    def __init__(
        self, call: Call, activation: Activation, begun: intents.Begun | None = None
    ) -> None:
        self.call = call
        self.activation = activation
        self.begun = begun
        self.concurrent: Concurrent | None = None
        self.ending: RayObjectsError | None = None
        self.started = False
        self.closed = False
        self.hook = ""
        self.awaits: dict[str, tuple[str, str]] = {}
        self.now = activation.host.clock.now() if begun is None else begun.now
        self._children: list[Callable[[], object]] | None = None
        self._ended = False
        self._position = 0
        self._names = 0
        self._random: Random | None = None

    @property
    def call_id(self) -> str:
        """The id of the running call; "" where it has none."""
        return self.call.id

    @property
    def root_id(self) -> str:
        """The id of the call that this chain of calls began with; "" where it has none."""
        return intents.root_of(self.activation.id, self.call.id) if self.call.id else ""

    @property
    def chain(self) -> tuple[str, ...]:
        """The objects that wait, outermost first, with the running one last."""
        if self.concurrent is not None and not self.concurrent.holds:
            return self.call.chain  # this one holds nobody up
        return (*self.call.chain, str(self.activation.id))

    @property
    def random(self) -> Random:
        """Random numbers that are the same ones in a repetition of the call."""
        if self._random is None:
            seed = self.call.id or self.activation.host.new_promise_key()
            self._random = seeded(f"{self.activation.id}\0{seed}")
        return self._random

    def child_id(self) -> str:
        """The id of the next call that this call makes: it follows from its own id and position,
        so that a repetition of the call makes the same ones. Those of a hook are never repeated,
        and have ids so that circles are found."""
        self._position += 1
        if not self.call.id:
            return f"{self.hook}/{self._position}" if self.hook else ""
        return f"{intents.child_base(self.activation.id, self.call.id)}/{self._position}"

    def adopt(self, call: Call, values: Any) -> None:
        """Makes a call one that this call makes.

        Args:
            values: its arguments.
        """
        call.context = carried.outgoing(self)
        if self.closed:
            return  # a task that outlives its call: what it calls is nobody's
        call.id = self.child_id()
        call.chain = self.chain
        if self.call.expires_at:  # whoever waits for this call waits no longer for that one
            left_s = max(0.001, self.call.expires_at - self.activation.host.clock.monotonic())
            call.timeout_s = min(call.timeout_s or left_s, left_s)
        if self.call.id:
            call.held = True
            call.arguments_hash = hash_of(call.method, values)

    def tell(self, class_name: str, name: str, method: str, args: bytes, values: Any) -> None:
        """Adds a message for another object to what the call does.

        Args:
            args: pickled `(args, kwargs)`; `values` is the same, not pickled.
        """
        activation = self.activation
        if self.closed:
            raise RuntimeError(f"{activation.id}: a task that outlives its call can tell nothing")
        if self.concurrent is not None and not self.concurrent.holds:
            raise RuntimeError(
                f"{activation.id}: a concurrent method tells others something in a block that has "
                "the turn: `async with self.turn():`"
            )
        activation.state.check_running()
        activation.state.promised.put(
            told_to(
                activation.host.new_promise_key(),
                class_name,
                name,
                method,
                args,
                self.now,
                hash_of(method, values),
                carried.kept(self),
            )
        )

    def leave(self, call: Call, send: Callable[[], None], replied: Callable[[Any], None]) -> None:
        """Runs `send`, which sends a call that this one makes, once everything is on disk that the
        object has committed (guarantee 4), and that this call is made (guarantee 5)."""
        held = self.call.id and call.id  # what others than calls make is not made again
        if held and self.concurrent is None and not self.closed:
            intents.leave(self.activation, self, call, send, replied)
        elif self.closed and self.activation.gone and self.activation.host.failed is None:
            send()  # nobody's, and the object has left in order: all that it had seen is on disk
        else:
            self.activation.after_sync(send, lambda: replied(self.cut_off()))

    def cut_off(self) -> Unavailable:
        """For a call that cannot leave any more: its object's life has ended before."""
        return Unavailable(
            f"{self.activation.shown} lost its storage before its call could be sent: what had "
            "begun is run again without you"
        )

    def new_name(self) -> str:
        """A random name, the same one in a repetition of the call; "" where the call has no id."""
        if not self.call.id:
            return ""
        self._names += 1
        text = f"{self.activation.id}\0{self.call.id}\0{self._names}"
        return blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def made_calls(self) -> bool:
        """Whether the call has called other objects, in this run or in one that a crash ended."""
        return self._position > 0 or (self.begun is not None and self.begun.intent is not None)

    @property
    def late_s(self) -> float:
        """For how long the same calls to others may still come from a process that has died."""
        if self.concurrent is None and (self.begun is None or not self.begun.rerun):
            return 0.0
        host = self.activation.host
        return max(0.0, host.late_until - host.clock.monotonic())

    def add_child(self, acknowledge: Callable[[], object]) -> None:
        """A child has replied; `acknowledge` lets its host forget that, once this call ended."""
        if self._ended:
            acknowledge()
        elif self._children is None:
            self._children = [acknowledge]
        else:
            self._children.append(acknowledge)

    def ended(self) -> None:
        """The call has ended for good: the replies of its children are needed no more."""
        self._ended = True
        if self._children is not None:
            for acknowledge in self._children:
                acknowledge()
            self._children = None


current_call: ContextVar[CallContext | None] = ContextVar("current_call", default=None)

local_router: ContextVar[Any] = ContextVar("local_router", default=None)
"""Set around and inside a host without Ray (`rayobjects.testing`): stubs and namespaces that are
used there send their calls to it instead of the cluster."""
