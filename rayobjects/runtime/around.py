"""What `ro.init` puts around the calls of a whole cluster: filters, and how its processes are set
up.

They are pickled with the user's modules that they need, like classes, and lie in Ray's key-value
store under a name that follows from their content; a pointer names the ones that are in force. They
last as long as the Ray cluster does: whoever starts it the next time hands them in again.

    before the pointer is written   the old ones are in force everywhere;
    after it                        a host that starts has the new ones. Hosts that live are told,
                                    and if nobody can tell them, find it out within seconds.

A host that cannot load them answers every call with that error: a filter may be what keeps people
out, so nothing runs without them. Where the set-up of a process raises, that is told and logged,
and calls go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from rayobjects.errors import InvalidCall, StorageFailed
from rayobjects.objects.catalog import import_path
from rayobjects.objects.filters import Filter, check, refusing
from rayobjects.objects.pickling import load_functions, pickle_functions
from rayobjects.objects.tracing import with_spans
from rayobjects.runtime.configuration import read_around, read_around_name

logger = logging.getLogger("rayobjects")

LOOK_EVERY_S = 5.0
"""How often a host looks whether others are in force."""

Setup = Callable[[], object]


class Bundle(msgspec.Struct):
    """How they lie in the store.

    Attributes:
        code: what `pickle_functions` made of {"filters": …, "setup": …}.
        sys_path: folders that they could import from where they were handed in.
    """

    code: bytes
    sys_path: list[str] = []


class Handed(NamedTuple):
    """What `ro.init` was given, ready for the store.

    Attributes:
        name: follows from the code; "" for nothing.
        bundle: an encoded `Bundle`.
    """

    name: str
    bundle: bytes


def hand_in(filters: Iterable[Filter], setup: Setup | None) -> Handed:
    """Makes a bundle.

    Raises:
        InvalidCall: one is no filter, cannot be pickled or is too large.
    """
    checked = check(filters)
    if setup is not None and not callable(setup):
        raise InvalidCall(f"process_setup is a function without arguments, not {setup!r}")
    functions: list[Any] = [*checked, *([] if setup is None else [setup])]
    if not functions:
        return Handed("", b"")
    name, code = pickle_functions({"filters": checked, "setup": setup}, functions)
    folders = dict.fromkeys(folder for each in functions for folder in import_path(each))
    return Handed(name, msgspec.msgpack.encode(Bundle(code, list(folders))))


def load(bundle: bytes) -> tuple[tuple[Filter, ...], Setup | None]:
    """The filters and the set-up of a bundle.

    Raises:
        InvalidCall: they cannot be loaded in this process.
    """
    if not bundle:
        return (), None
    decoded = msgspec.msgpack.decode(bundle, type=Bundle)
    found = load_functions(decoded.code, decoded.sys_path)
    return check(found["filters"]), found["setup"]


class Around:
    """What is in force in this process.

    Attributes:
        error: why it could not be loaded, or its set-up raised; "" if all went well.
    """

    def __init__(self) -> None:
        self.error = ""
        self._name: str | None = None
        self._filters: tuple[Filter, ...] = ()
        self._looked_at_s = float("-inf")

    @property
    def filters(self) -> tuple[Filter, ...] | None:
        """What a host's core has around its calls."""
        return with_spans(self._filters)

    async def take(self) -> None:
        """Loads what is in force now, and runs the set-up if it was not in force before.

        Raises:
            StorageFailed: Ray's store could not be read.
        """
        try:
            name, bundle = await asyncio.to_thread(_read, self._name)
        except Exception as error:
            raise StorageFailed(
                f"the cluster's filters could not be read ({type(error).__name__}: {error}): try "
                "again"
            ) from error
        if name == self._name:
            return
        self.error = ""
        setup: Setup | None = None
        try:
            self._filters, setup = await asyncio.to_thread(load, bundle)
        except InvalidCall as error:
            self.error = error.message
            self._filters = (refusing(InvalidCall(self.error, status=500)),)
        if setup is not None:
            try:
                await asyncio.to_thread(setup)
            except Exception as error:
                self.error = f"process_setup raised {type(error).__name__}: {error}"
        if self.error:
            logger.error(self.error)
        self._name = name

    async def look(self, now_s: float) -> None:
        """Looks, every LOOK_EVERY_S, whether others are in force.

        Args:
            now_s: the monotonic time.
        """
        if now_s - self._looked_at_s >= LOOK_EVERY_S:
            self._looked_at_s = now_s
            await self.take()


def _read(known: str | None) -> tuple[str, bytes]:
    """The name and the bundle that are in force; the latter not for the known name."""
    while True:
        name = read_around_name()
        if not name or name == known:
            return name, b""
        bundle = read_around(name)
        if bundle is not None:  # else others have just been put in force
            return name, bundle
