"""What the runtime runs of a class by itself: `on_upgrade`, `on_start` and `on_stop`.

Each is a call of its own with its own commit, all of it or nothing, and takes the object's turn.

`on_upgrade` runs where an object is activated with a newer version of its class than the one that
last wrote it, before `on_start`. What it writes and the new version are one record, which is
written even if it changed nothing else: so it runs once for each object and version. When the
process dies

    before the record is on disk   the object is as the old version left it, and the next activation
                                   runs `on_upgrade` again, from the same state;
    after that                     the object belongs to the new version.

If it raises, nothing was written and the activation is refused: the object's calls fail with the
error, and each tries again, until a version is deployed that can do it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayobjects.errors import RayObjectsError, is_mistake
from rayobjects.messages import OK
from rayobjects.objects.commit import no_reply
from rayobjects.objects.context import NO_CALL, CallContext, current_call
from rayobjects.objects.ending import mistaken
from rayobjects.objects.invocation import Invocation
from rayobjects.storage.records import Loaded, Record

if TYPE_CHECKING:
    from rayobjects.objects.activation import Activation

UPGRADE = "on_upgrade"


async def start(activation: Activation, loaded: Loaded) -> None:
    """Runs on_upgrade, if the object needs it, and on_start.

    Raises:
        MethodError: one of them raised.
        RayObjectsError: one of them let an error of ours through.
    """
    object_class = activation.object_class
    assert object_class is not None
    step = UPGRADE
    try:
        if loaded.exists and loaded.version < object_class.info.version:
            await run_hook(activation, UPGRADE, loaded.version)
        step = "on_start"
        await run_hook(activation, step)
    except RayObjectsError as error:
        target = f"{activation.shown}.{step}"
        if activation.gone or not is_mistake(error, target):
            raise
        raise mistaken(activation, target, error) from error
    except BaseException as error:
        if activation.gone:  # it is no fault of the method, and nobody waits for it
            raise
        raise activation.host.raised(f"{activation.shown}.{step}", error) from error


async def run_hook(activation: Activation, name: str, *arguments: object) -> None:
    """Runs a hook, if the class has it; returns when its record is given to the ledger.

    Raises:
        BaseException: what the hook raised; nothing of it is left.
    """
    assert activation.object_class is not None
    function = activation.object_class.hook(name)
    if function is None:
        return
    state = activation.state
    context = activation.hook = CallContext(NO_CALL, activation)
    context.hook = f"hook:{activation.host.new_promise_key()}"
    current_call.set(context)
    state.begin(context)
    try:
        try:
            await activation.invoke(
                Invocation(function, (activation.instance, *arguments), {}, True)
            )
        finally:
            activation.hook = None
            context.closed = True  # a task that outlives it is nobody's
        changes = state.changes()
        if (changes or name == UPGRADE) and not activation.gone:
            record = Record(*activation.id)
            changes.write_into(record)
            activation.commit(record, context, no_reply, OK, b"")
        else:
            context.ended()
    except BaseException:
        state.rollback()
        context.ended()
        raise
    state.commit()
