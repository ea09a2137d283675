"""One process at a time starts a cluster for a storage root; locks and lists, without Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import rayobjects as ro
from rayobjects.runtime import client, cluster, starting
from rayobjects.runtime.registry import Record

WITHIN_S = 30.0

HOLD = """
import sys
from rayobjects.runtime.starting import starting
with starting(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYOBJECTS_CLUSTERS_DIRECTORY", str(tmp_path))
    return tmp_path


def held(storage: str) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, storage],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_one_at_a_time_and_nothing_is_left(directory: Path) -> None:
    inside = most = 0
    count = threading.Lock()

    def start() -> None:
        nonlocal inside, most
        for _ in range(20):
            with starting.starting("/data"):
                with count:
                    inside += 1
                    most = max(most, inside)
                with count:
                    inside -= 1

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN_S)
        assert not thread.is_alive()
    assert most == 1
    assert list(directory.iterdir()) == []


def test_roots_do_not_wait_for_each_other() -> None:
    with starting.starting("/data"), starting.starting("/other"):
        pass


def test_whoever_waits_too_long_is_told_for_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "WAIT_S", 0.1)
    holder = held("/data")
    try:
        with (
            pytest.raises(ro.Unavailable, match=f"process {holder.pid} has been starting.*/data"),
            starting.starting("/data"),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_one_that_dies_lets_go() -> None:
    holder = held("/data")
    done = threading.Event()

    def wait() -> None:
        with starting.starting("/data"):
            done.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not done.wait(0.2)
    holder.kill()
    assert done.wait(WITHIN_S)
    waiter.join()
    holder.wait()


class Clusters:
    """Those of this machine, and what `attach` does with them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records: list[Record] = []
        self.connected: list[str] = []
        self.ended: list[Record] = []
        for name in ("RAYOBJECTS_ADDRESS", "RAY_ADDRESS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.setattr(starting.registry, "running", lambda: list(self.records))
        monkeypatch.setattr(starting.registry, "stop", self.stop)
        monkeypatch.setattr(cluster, "connect", self.connected.append)
        monkeypatch.setattr(cluster, "start_local", self.start)
        monkeypatch.setattr(cluster.atexit, "register", lambda function: None)

    def start(self, **_: Any) -> Clusters:
        self.records.append(record(f"127.0.0.1:{1 + len(self.records)}"))
        self.address = self.records[-1].address
        return self

    def announce(self, storage: str) -> None:
        self.records[-1].facts["storage"] = storage

    def stop(self, record: Record | None = None) -> None:
        if record is not None:
            self.ended.append(record)
            self.records.remove(record)


def record(address: str, owner: int = 0) -> Record:
    return Record(address, "token", "mark", owner or os.getpid(), 0.0, "", ready=True)


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> Clusters:
    return Clusters(monkeypatch)


def test_the_second_of_two_attaches_to_what_the_first_has_started(clusters: Clusters) -> None:
    with ExitStack() as first:
        first.enter_context(cluster.attach("/data"))
        ready = threading.Event()

        def second() -> None:
            with cluster.attach("/data"):
                ready.set()

        thread = threading.Thread(target=second)
        thread.start()
        assert not ready.wait(0.3), "the first has not made it ready"
        assert clusters.connected == ["127.0.0.1:1"]
    assert ready.wait(WITHIN_S)
    thread.join()
    assert clusters.connected == ["127.0.0.1:1", "127.0.0.1:1"]
    assert len(clusters.records) == 1
    with cluster.attach("/other"):
        assert clusters.connected[-1] == "127.0.0.1:2"


def test_a_first_that_fails_leaves_it_to_the_second(clusters: Clusters) -> None:
    class Failed(Exception):
        pass

    with pytest.raises(Failed), cluster.attach("/data"):
        raise Failed
    with cluster.attach("/data"):
        assert clusters.connected == ["127.0.0.1:1", "127.0.0.1:1"]


def test_a_cluster_whose_owner_was_killed_is_not_attached_to(clusters: Clusters) -> None:
    orphan = record("127.0.0.1:9", owner=2**22 - 1)
    orphan.facts["storage"] = "/data"
    clusters.records.append(orphan)
    with cluster.attach("/data"):
        assert clusters.connected == ["127.0.0.1:1"]
    assert clusters.ended == [orphan]


def test_a_root_of_another_ray_is_refused_with_a_name(
    clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters.start().announce("/data")

    class Context:
        gcs_address = "127.0.0.1:7"

    monkeypatch.setattr(client.ray, "get_runtime_context", Context)
    with pytest.raises(ro.InvalidCall, match=f"in use by process {os.getpid()}, whose Ray is at"):
        client._check_free("/data")
    client._check_free("/other")
    Context.gcs_address = "127.0.0.1:1"
    client._check_free("/data")
