"""What the storage refuses, as the callers of a running cluster meet it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray_cluster import RayCluster
from served import wait_until

import rayobjects as ro
from rayobjects.runtime import admin, placement
from rayobjects.storage.manifest import Manifest

WITHIN_S = 30.0
HEADER_BYTES = 16
"""Of the journal's segments and groups: behind it there is something to damage."""


class Counter(ro.DurableObject):
    count: int = ro.durable(0)

    def increment(self) -> int:
        self.count += 1
        return self.count


@pytest.fixture
def cluster(ray_cluster: RayCluster) -> Iterator[None]:
    """A cluster without objects, before and after."""
    yield
    admin.stop_hosts()
    ro.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_root_of_another_version_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "newer" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text('{"format": 999}')
    for _ in range(2):
        with pytest.raises(ro.StorageFailed, match="the format 999, this version knows 1"):
            ro.init(storage=str(manifest.parent))
    assert manifest.read_text() == '{"format": 999}'
    assert [path.name for path in manifest.parent.iterdir()] == ["manifest.json"]

    ro.init(storage=str(tmp_path / "own"), shards=1)
    assert ro.deploy(Counter).get("home").increment.remote().result(WITHIN_S) == 1


@pytest.mark.usefixtures("cluster")
def test_guarantee_1_a_root_has_one_cluster(tmp_path: Path) -> None:
    other = Manifest.open(str(tmp_path / "taken"), "the other cluster", 1)
    try:
        with pytest.raises(ro.StorageFailed, match="in use by the cluster 'the other cluster'"):
            ro.init(storage=str(tmp_path / "taken"))
        ro.init(storage=str(tmp_path / "free"), shards=1)
        assert ro.deploy(Counter).get("home").increment.remote().result(WITHIN_S) == 1
        admin.stop_hosts()
        ro.shutdown()
    finally:
        other.close()
    ro.init(storage=str(tmp_path / "taken"))
    assert ro.deploy(Counter).get("home").increment.remote().result(WITHIN_S) == 1


@pytest.mark.usefixtures("cluster")
def test_a_damaged_journal_stops_its_shard_only(tmp_path: Path) -> None:
    ro.init(storage=str(tmp_path), shards=2)
    counters = ro.deploy(Counter)
    sound, broken = (counter_of_shard(counters, shard) for shard in (0, 1))
    for number in range(1, 6):  # each waits for the one before: a group of its own
        assert sound.increment.remote().result(WITHIN_S) == number
        assert broken.increment.remote().result(WITHIN_S) == number
    kill_hosts()

    (journal,) = (tmp_path / "shards" / "default-0001").glob("journal-*.log")
    whole = journal.read_bytes()
    second_group = whole.index(b"\xf5GRP", whole.index(b"\xf5GRP") + 1)
    damaged = bytearray(whole)
    damaged[second_group + HEADER_BYTES] ^= 0xFF
    journal.write_bytes(damaged)

    with pytest.raises(ro.StorageFailed) as refused:
        broken.increment.remote().result(WITHIN_S)
    assert str(journal) in refused.value.message
    assert str(second_group) in refused.value.message.replace(",", "")
    assert sound.increment.remote().result(WITHIN_S) == 6
    assert journal.read_bytes() == damaged
    states = {host.name: host.state for host in admin.status().hosts}
    assert states["default/0000"] == "alive"
    assert str(journal) in states["default/0001"]

    journal.write_bytes(whole)  # restored from a copy: goes on without a restart
    assert ask_until_answered(broken) == 6


def counter_of_shard(counters: ro.Namespace, shard: int) -> ro.Stub:
    names = (f"counter {number}" for number in range(1_000))
    stubs = (counters.get(name) for name in names)
    return next(stub for stub in stubs if placement.shard_of(stub.id, 2) == shard)


def kill_hosts() -> None:
    """Kills the hosts' processes; those that Ray starts for them open nothing until called."""
    for host in admin.status().hosts:
        process = psutil.Process(host.figures["pid"])
        os.kill(process.pid, signal.SIGKILL)
        process.wait(WITHIN_S)


def ask_until_answered(counter: ro.Stub) -> int:
    """A host tries again half a second after it could not open its storage."""
    while True:
        try:
            return int(counter.increment.remote().result(WITHIN_S))
        except ro.StorageFailed:
            continue


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("hosting", ["shared", "dedicated"])
def test_what_is_stopped_stays_stopped_though_it_is_called(tmp_path: Path, hosting: str) -> None:
    """Whoever calls meanwhile makes no host anew, which would hold the storage."""
    ro.init(storage=str(tmp_path), shards=1, hosting=hosting)  # type: ignore[arg-type]
    home = ro.deploy(Counter).get("home")
    added = [home.increment.remote().result(WITHIN_S)]
    refused = threading.Event()

    def call_on() -> None:
        while not refused.is_set():
            try:
                added.append(home.increment.remote().result(WITHIN_S))
            except ro.RayObjectsError as error:  # at first its host says that it stops
                if "have been stopped" in error.message or "are being stopped" in error.message:
                    refused.set()

    callers = [threading.Thread(target=call_on) for _ in range(4)]
    for caller in callers:
        caller.start()
    admin.stop_hosts()
    assert refused.wait(WITHIN_S)
    for caller in callers:
        caller.join(WITHIN_S)
    assert placement.live_hosts() == []
    with pytest.raises(ro.Unavailable, match="have been stopped"):
        home.increment.remote().result(WITHIN_S)
    ro.shutdown()
    ro.init(storage=str(tmp_path))
    assert home.increment.remote().result(WITHIN_S) >= max(added) + 1


@pytest.mark.usefixtures("cluster")
def test_a_stop_that_was_cut_off_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ro.init(storage=str(tmp_path), shards=1)
    home = ro.deploy(Counter).get("home")
    assert home.increment.remote().result(WITHIN_S) == 1

    class CutOff(Exception):
        pass

    def cut_off() -> None:
        raise CutOff

    with monkeypatch.context() as patch:
        patch.setattr(admin, "delete_configuration", cut_off)
        with pytest.raises(CutOff):
            admin.stop_hosts()

    def said() -> str:
        with pytest.raises(ro.RayObjectsError) as refused:
            home.increment.remote().result(WITHIN_S)
        return refused.value.message

    # A host that ends may still say so itself.
    wait_until(lambda: "run `rayobjects down` again" in said(), "no host is made")
    admin.stop_hosts()
    ro.shutdown()
    ro.init(storage=str(tmp_path))
    assert home.increment.remote().result(WITHIN_S) == 2
