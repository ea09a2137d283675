"""What can be set from outside, by keyword or by environment variable `RAYOBJECTS_*`.

A keyword of `ro.init` or an option of the command line wins over the environment, the environment
over the default. What a running cluster has been started with (storage, shards, hosting) stays as
it is until the cluster stops; limits that guard the system are not here but in `limits`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from rayobjects.errors import InvalidCall
from rayobjects.limits import SHARDS_DEFAULT_MAX, SHARDS_MAX

STORAGE = "rayobjects-data"
"""Where `rayobjects serve` keeps the objects unless told otherwise: beside where it was started."""

Hosting = Literal["shared", "dedicated"]


def shards_default() -> int:
    """One shard for each CPU of this machine, at most 16."""
    return min(os.cpu_count() or 1, SHARDS_DEFAULT_MAX)


def clusters_directory_default() -> Path:
    """Where this user's running clusters are listed."""
    return Path.home() / ".rayobjects" / "clusters"


class Settings(BaseSettings):
    """The settings. `RAYOBJECTS_PORT=8080` sets `port`.

    Attributes:
        storage: the storage root: a directory's path or `file://` URL.
        storage_shared: every node of the cluster sees the storage root.
        address: of the Ray cluster, `host:port`; empty for the one that runs on this machine.
        shards: of the pool `default`, one for each CPU if it is left out; fixed by the storage once
            it has been made.
        hosting: of classes that do not say: "shared" or "dedicated".
        idle_s: after how many seconds without a call an activation leaves.
        unavailable_after_s: how many seconds a caller looks for a host before calls fail.
        host: the gateway's address; loopback only.
        port: the gateway's port.
        allowed_hosts: names, separated by commas, that the gateway answers to beside 127.0.0.1,
            localhost and [::1]: those of a proxy in front of it; `*` for every name.
        socket_ping_s: after how many seconds the gateway pings a client's WebSocket again; a client
            that takes longer to answer is gone.
        socket_idle_s: after how many seconds without a message, in either direction, the gateway
            closes a WebSocket (1001); 0 leaves it open.
        clusters_directory: where this user's running clusters are listed.
    """

    model_config = SettingsConfigDict(env_prefix="RAYOBJECTS_", env_ignore_empty=True)

    storage: str | None = None
    storage_shared: bool = False
    address: str = ""
    shards: int | None = Field(default=None, ge=1, le=SHARDS_MAX)
    hosting: Hosting = "shared"
    idle_s: float = Field(default=60.0, gt=0)
    unavailable_after_s: float = Field(default=30.0, gt=0)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65_535)
    allowed_hosts: str = ""
    socket_ping_s: float = Field(default=20.0, gt=0)
    socket_idle_s: float = Field(default=0.0, ge=0)
    clusters_directory: Path = Field(default_factory=clusters_directory_default)


def settings(*, options: bool = False, **given: Any) -> Settings:
    """The settings, with those that are given (and not None) over the environment's.

    Args:
        options: what is given are options of the command line, and called so in messages.

    Raises:
        InvalidCall: a value is not allowed; the message names the setting and its variable.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]) if problem["loc"] else "?"
        if given.get(name) is None:
            source = f"the setting RAYOBJECTS_{name.upper()}"
        else:
            source = f"--{name}" if options else f"the setting {name}=…"
        raise InvalidCall(f"{source} cannot be {problem['input']!r}: {problem['msg']}") from None
