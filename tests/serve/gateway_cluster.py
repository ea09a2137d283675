"""Starts Ray and the gateway with a double behind it; for `test_gateway_on_ray`.

    python gateway_cluster.py DIRECTORY PORT

Prints `ready`, or an error in one line; stops everything when its standard input closes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parent)


def make_app() -> Any:
    """The user's own app, which goes to the replica by value."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/mine")
    def mine() -> str:
        return "mine"

    return app


async def connect() -> Any:
    """Makes the double, in the replica."""
    sys.path.insert(0, HERE)
    from gateway_double import EchoRoom, Info

    room = EchoRoom()
    room.classes["Room"] = Info("Room", sockets=True)
    return room


def main(directory: str, port: int) -> None:
    from rayobjects.errors import InvalidCall
    from rayobjects.serve.haproxy import environment

    os.environ.update(environment(f"{directory}/h"))
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    import ray

    from rayobjects.serve.run import start_gateway, stop_gateway

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        _temp_dir=f"{directory}/ray",
        log_to_driver=False,
        namespace="rayobjects",
    )
    try:
        pages = {"/": ("text/html", "<p>hello")}
        start_gateway(port=port, connect=connect, app=make_app(), pages=pages)
        print("ready", flush=True)
        sys.stdin.read()
        stop_gateway()
    except InvalidCall as error:
        print(error.message, flush=True)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
