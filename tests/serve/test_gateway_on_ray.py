"""The gateway on Ray Serve in HAProxy mode, with a double for the objects."""

import asyncio
import ipaddress
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from served import wait_until
from websockets.asyncio.client import connect

from rayobjects.errors import InvalidCall
from rayobjects.limits import STREAM_ITEMS_AHEAD_MAX
from rayobjects.serve.run import start_gateway

pytestmark = pytest.mark.cluster

SCRIPT = Path(__file__).with_name("gateway_cluster.py")


@pytest.fixture(scope="module")
def gateway() -> Iterator[tuple[str, psutil.Process]]:
    """The address of a gateway, and the process whose children Ray's processes are."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    directory = tempfile.mkdtemp(prefix="rg-", dir="/tmp")  # Ray's socket paths must be short
    with subprocess.Popen(
        [sys.executable, SCRIPT, directory, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield f"127.0.0.1:{port}", psutil.Process(process.pid)
        process.stdin.close()
        process.wait(60)
    shutil.rmtree(directory)


def test_routes(gateway: tuple[str, psutil.Process]) -> None:
    with httpx.Client(base_url=f"http://{gateway[0]}") as client:
        answer = client.post("/objects/Room/a%2Fb/say", content=b'{"x": "1"}')
        assert (answer.status_code, answer.content) == (200, b'{"x": "1"}')
        assert client.get("/objects/Room/a%2Fb").status_code == 426
        assert client.get("/objects/Room").json() == {"names": [], "next": None}
        assert "/objects/Room/{name}" in client.get("/openapi.json").json()["paths"]
        assert "swagger" in client.get("/docs").text
        assert client.get("/").text == "<p>hello"
        assert client.get("/mine").json() == "mine"
        headers = {"x-request-timeout-seconds": "0.000001"}
        assert client.post("/objects/Room/lobby/say", headers=headers).status_code == 200


def test_our_own_503_is_not_made_a_500(gateway: tuple[str, psutil.Process]) -> None:
    answer = httpx.post(f"http://{gateway[0]}/objects/Room/lobby/busy")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["title"] == "Unavailable"


def test_a_stream(gateway: tuple[str, psutil.Process]) -> None:
    """Items come at once, and the one who yields them hears that the client has gone."""
    with httpx.Client(base_url=f"http://{gateway[0]}", timeout=30) as client:
        headers = {"accept": "text/event-stream"}
        with client.stream("POST", "/objects/Room/a/watch", headers=headers) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            lines = (line for line in answer.iter_lines() if line)
            found = [next(lines) for _ in range(STREAM_ITEMS_AHEAD_MAX // 2)]
            assert found[:2] == ["data: 1", "data: 2"]
            assert client.post("/objects/Room/a/closed").json() == 0
        wait_until(lambda: client.post("/objects/Room/a/closed").json() == 1, "it is closed")


def test_a_socket(gateway: tuple[str, psutil.Process]) -> None:
    async def main() -> None:
        # The client offers compression; HAProxy takes the offer out.
        async with connect(f"ws://{gateway[0]}/objects/Room/a%2Fb") as client:
            assert client.response is not None
            assert "Sec-WebSocket-Extensions" not in client.response.headers
            for number in range(100):
                await client.send(str(number))
            assert [await client.recv() for _ in range(100)] == [str(n) for n in range(100)]

    asyncio.run(main())


def test_what_listens(gateway: tuple[str, psutil.Process]) -> None:
    """HAProxy and Serve listen on loopback only. What is left to the replica is the port that Ray
    opens in each of its workers."""
    open_ports: dict[str, int] = {}
    loopback_ports: dict[str, int] = {}
    for process in gateway[1].children(recursive=True):
        name = process.cmdline()[0] if process.cmdline() else ""
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                # gRPC binds an IPv6 socket to the IPv4 address.
                address = ipaddress.ip_address(connection.laddr.ip.removeprefix("::ffff:"))
                ports = loopback_ports if address.is_loopback else open_ports
                ports[name] = ports.get(name, 0) + 1
    (haproxy,) = [name for name in loopback_ports if name.endswith("/haproxy")]
    assert loopback_ports[haproxy] == 1
    assert haproxy not in open_ports
    (replica,) = [name for name in loopback_ports if "ServeReplica" in name]
    opened = open_ports.get(replica, 0)  # Ray's own; none where Ray has been told to stay local
    assert opened <= 1
    assert loopback_ports[replica] + opened == 3


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InvalidCall, match=f"port {port} is in use"):
            start_gateway(port=port)


def test_no_ray() -> None:
    # In a process of its own: this one may be connected to the tests' cluster.
    code = "from rayobjects.serve.run import start_gateway; start_gateway(port=0)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "Unavailable" in ended.stderr
    assert "ro.init" in ended.stderr


def test_only_loopback() -> None:
    with pytest.raises(InvalidCall, match="no authentication"):
        start_gateway(host="0.0.0.0")


def test_an_app_that_cannot_be_sent() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        held.getsockname()

    with socket.socket() as held, pytest.raises(InvalidCall, match="cannot be sent"):
        start_gateway(port=0, app=app)  # type: ignore[arg-type]
