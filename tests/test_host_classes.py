"""Many objects ask for a class at once, some at the moment in which it has just been loaded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rayobjects.errors import InvalidCall
from rayobjects.runtime.host_classes import HostClasses


def loaded(result: Any) -> asyncio.Future[Any]:
    """A load that has ended, and whose callbacks have not run."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


def test_a_class_that_has_just_been_loaded() -> None:
    async def main() -> None:
        classes = HostClasses()
        classes._loading["Room"] = loaded("the class")
        assert await classes.get("Room") == "the class"  # type: ignore[comparison-overlap]
        assert await classes.get("Room") == "the class"  # type: ignore[comparison-overlap]
        assert not classes._loading

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_class_that_has_just_failed_to_load() -> None:
    async def main() -> None:
        classes = HostClasses()
        classes._loading["Room"] = loaded(InvalidCall("no such class"))
        with pytest.raises(InvalidCall, match="no such class"):
            await classes.get("Room")
        assert not classes._loading

    asyncio.run(asyncio.wait_for(main(), 10))
