"""Classes in the course of time, with both hostings: new versions, new names, the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray_sockets import Sockets

import rayobjects as ro
from rayobjects.runtime import admin, class_changes, client, placement
from rayobjects.runtime.configuration import read_catalog, write_catalog

pytestmark = pytest.mark.timeout(300)

WITHIN_S = 60.0
LARGE = 600


def account(version: int) -> type[ro.DurableObject]:
    """The version says how many times what is paid counts; conversion multiplies what there is."""

    class Account(ro.DurableObject):
        money: int = ro.durable(0)
        upgrades: list[int] = ro.durable(factory=list)

        if version > 1:

            def on_upgrade(self, from_version: int) -> None:
                self.money *= 10
                self.upgrades.append(from_version)

        def pay(self, money: int) -> list[int]:
            self.money += money
            return [version, self.money]

        def fill(self) -> None:
            for number in range(LARGE):
                self.storage[f"{number:04}"] = number

        def plan(self) -> None:
            self.schedule(self.pay, 1, after=3600, key="pay")

        def plans(self) -> int:
            return len(self.scheduled())

        def seen(self) -> list[Any]:
            return [version, self.money, self.upgrades, len(self.storage)]

        async def wait(self, path: str) -> int:
            import asyncio

            Path(path).with_suffix(".begun").touch()
            while not await asyncio.to_thread(Path(path).exists):  # noqa: ASYNC110  of another process
                await asyncio.sleep(0.01)
            self.money += 1
            return version

        def on_message(self, ws: Any, data: str) -> None:
            ws.send(f"{version} {data} {self.id.class_name}")

    return Account


@pytest.fixture(autouse=True)
def deployed(hosting: str) -> Iterator[str]:
    ro.deploy(account(1))
    yield hosting
    for name in [status.name for status in admin.status().classes]:
        class_changes.delete_class(name)
    assert read_catalog().classes == {}


def live_actors() -> list[str]:
    return [host for host in placement.live_hosts() if placement.shard_of_host(host) is None]


# -- versions --------------------------------------------------------------------------------------


def test_busy_large_and_listening_objects_move_and_are_upgraded_once(tmp_path: Path) -> None:
    accounts = ro.namespace("Account")
    idle, busy, large = (accounts.get(name) for name in ("idle", "busy", "large"))
    assert idle.pay.remote(1).result(WITHIN_S) == [1, 1]
    large.fill.remote().result(WITHIN_S)
    large.pay.remote(1).result(WITHIN_S)
    with Sockets() as sockets:
        socket = sockets.connect(idle)
        assert socket.say("a") == "1 a Account"
        running = busy.wait.remote(str(tmp_path / "now"))
        waiting = [busy.pay.remote(1) for _ in range(3)]
        wait_for(tmp_path / "now.begun")
        ro.deploy(account(2))
        waiting += [busy.pay.remote(1) for _ in range(3)]
        assert socket.say("b") == "2 b Account"
        assert idle.seen.remote().result(WITHIN_S) == [2, 10, [1], 0]
        assert large.seen.remote().result(WITHIN_S) == [2, 10, [1], LARGE]
        assert not running.done()
        (tmp_path / "now").touch()
        assert running.result(WITHIN_S) == 1
        money = [response.result(WITHIN_S)[1] for response in waiting]
        assert money == [11, 12, 13, 14, 15, 16]
        kill_hosts()
        assert busy.seen.remote().result(WITHIN_S) == [2, 16, [1], 0]
        assert socket.say("c") == "2 c Account"
        assert socket.closed is None


def wait_for(path: Path) -> None:
    import time

    deadline = time.monotonic() + WITHIN_S
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_hosts() -> None:
    for host in admin.status().hosts:
        if "pid" in host.figures:
            os.kill(host.figures["pid"], signal.SIGKILL)


def test_a_class_that_does_not_load_leaves_the_old_one_serving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = ro.namespace("Account").get("home")
    home.pay.remote(5).result(WITHIN_S)
    before = read_catalog()
    (module := type(sys)("only_here")).value = 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "only_here", module)
    import only_here

    class Account(account(2)):  # type: ignore[misc]
        def other(self) -> Any:
            return only_here

    with pytest.raises(ro.InvalidCall, match="'only_here' is missing"):
        ro.deploy(Account)
    assert home.seen.remote().result(WITHIN_S) == [1, 5, [], 0]

    class Fuse:
        def __reduce__(self) -> Any:
            return os._exit, (3,)

    class Bomb(ro.DurableObject):
        fuse = Fuse()

    with pytest.raises(ro.InvalidCall, match="ended the process that tried it"):
        ro.deploy(Bomb)
    assert read_catalog() == before
    assert home.seen.remote().result(WITHIN_S) == [1, 5, [], 0]


def test_hosts_that_were_not_told_find_out_by_themselves() -> None:
    """Whoever deployed has died before it could tell them."""
    home = ro.namespace("Account").get("untold")
    assert home.pay.remote(1).result(WITHIN_S) == [1, 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rayobjects.runtime.client.refresh_hosts", lambda keys: None)
        ro.deploy(account(2))
    import time

    deadline = time.monotonic() + WITHIN_S
    while home.seen.remote().result(WITHIN_S)[0] == 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert home.seen.remote().result(WITHIN_S) == [2, 10, [1], 0]


def test_what_is_stored_and_was_not_published_is_published() -> None:
    home = ro.namespace("Account").get("unpublished")
    home.pay.remote(1).result(WITHIN_S)
    old = read_catalog()
    ro.deploy(account(2))
    new = read_catalog()
    write_catalog(old, {})  # as if the host had died between the two
    kill_hosts()
    home.seen.remote().result(WITHIN_S)
    client.ask_host(placement.shard_host(0), lambda host: host.start.remote())
    assert read_catalog().classes == new.classes


# -- names -----------------------------------------------------------------------------------------


def test_a_renamed_class_keeps_objects_sockets_and_stubs() -> None:
    old = ro.namespace("Account").get("home")
    assert old.pay.remote(1).result(WITHIN_S) == [1, 1]
    with Sockets() as sockets:
        socket = sockets.connect(old)
        assert socket.say("a") == "1 a Account"
        class_changes.rename_class("Account", "Konto")
        class_changes.rename_class("Account", "Konto")  # again: nothing to do
        new = ro.namespace("Konto").get("home")
        assert new.pay.remote(1).result(WITHIN_S) == [1, 2]
        assert old.pay.remote(1).result(WITHIN_S) == [1, 3]
        assert socket.say("b") == "1 b Konto"
        assert ro.namespace("Konto").list() == ro.namespace("Account").list() == ["home"]
        assert ro.namespace("Konto").exists("home")
        other = sockets.connect(new)
        assert other.say("c") == "1 c Konto"
        with pytest.raises(ro.MethodError, match=r"Konto/home\.pay raised TypeError"):
            new.pay.remote("x").result(WITHIN_S)

        konto = type("Konto", (account(2),), {})
        ro.deploy(konto)
        assert new.seen.remote().result(WITHIN_S) == [2, 30, [1], 0]
        assert socket.say("d") == "2 d Konto"
        kill_hosts()
        assert old.seen.remote().result(WITHIN_S) == [2, 30, [1], 0]
        assert socket.say("e") == "2 e Konto"
        assert other.say("f") == "2 f Konto"
    if live_actors():
        assert live_actors() == ["Account/home"]  # where it always was


def test_names_that_a_class_cannot_have() -> None:
    class Other(ro.DurableObject):
        pass

    ro.deploy(Other)
    for new_name, problem in [
        ("Other", "there is a class Other already"),
        ("not a name", "cannot be the name of a class"),
        ("default", "cannot be the name of a class"),
    ]:
        with pytest.raises(ro.InvalidCall, match=problem):
            class_changes.rename_class("Account", new_name)
    with pytest.raises(ro.InvalidCall, match="no class 'Nobody' is deployed"):
        class_changes.rename_class("Nobody", "Somebody")
    class_changes.rename_class("Account", "Konto")
    with pytest.raises(ro.InvalidCall, match="Account was the name of the class Konto"):
        ro.deploy(account(1))
    with pytest.raises(ro.InvalidCall, match="Account was the name of the class Konto"):
        class_changes.rename_class("Other", "Account")
    class_changes.rename_class("Konto", "Account")
    ro.deploy(account(1))
    assert read_catalog().classes["Account"].former == ["Konto"]


# -- the end ---------------------------------------------------------------------------------------


def test_a_deleted_class_is_gone_with_everything(deployed: str) -> None:
    accounts = ro.namespace("Account")
    names = [f"number {number}" for number in range(3 if deployed == "dedicated" else 40)]
    for name in names:
        accounts.get(name).pay.remote(1).result(WITHIN_S)
    accounts.get("never written").seen.remote().result(WITHIN_S)
    accounts.get(names[2]).plan.remote().result(WITHIN_S)
    with Sockets() as sockets:
        socket = sockets.connect(accounts.get(names[0]))
        asleep = sockets.connect(accounts.get(names[1]))
        assert socket.say("a") == asleep.say("a") == "1 a Account"
        told: list[int] = []
        assert class_changes.delete_class("Account", told.append) == len(names)
        assert told[-1] == len(names)
        socket.wait(lambda: socket.closed is not None)
        asleep.wait(lambda: asleep.closed is not None)
    assert live_actors() == []
    with pytest.raises(ro.InvalidCall, match="no class 'Account' is deployed"):
        accounts.get(names[0]).pay.remote(1).result(WITHIN_S)
    with pytest.raises(ro.InvalidCall, match="no class 'Account' is deployed"):
        class_changes.delete_class("Account")
    kill_hosts()
    ro.deploy(account(2))  # another class of that name begins with nothing
    assert accounts.list() == []
    assert accounts.get(names[0]).seen.remote().result(WITHIN_S) == [2, 0, [], 0]
    assert accounts.get(names[2]).plans.remote().result(WITHIN_S) == 0


def test_sockets_whose_actor_cannot_tell_them_are_closed_all_the_same() -> None:
    home = ro.namespace("Account").get("home")

    def end(*_: Any) -> int:
        for host in live_actors():
            ray.kill(ray.get_actor(host, namespace=placement.NAMESPACE), no_restart=True)
        return 0

    with Sockets() as sockets, pytest.MonkeyPatch.context() as patch:
        socket = sockets.connect(home)
        assert socket.say("a") == "1 a Account"
        patch.setattr(class_changes, "_end_dedicated", end)
        class_changes.delete_class("Account")
        socket.wait(lambda: socket.closed is not None)


def test_a_deletion_that_is_cut_off_is_finished_by_the_next() -> None:
    home = ro.namespace("Account").get("home")
    home.pay.remote(1).result(WITHIN_S)
    ask = class_changes.ask_host

    class CutOff(Exception):
        pass

    for steps in range(1, 4):  # begin, at least one page of each shard, end
        asked = 0

        def ask_and_die(host: str, what: Any, steps: int = steps) -> Any:
            nonlocal asked
            asked += 1
            if asked > steps:
                raise CutOff
            return ask(host, what)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(class_changes, "ask_host", ask_and_die)
            with pytest.raises(CutOff):
                class_changes.delete_class("Account")
        if steps == 2:
            kill_hosts()
        with pytest.raises(ro.InvalidCall, match=r"being deleted|no class"):
            home.pay.remote(1).result(WITHIN_S)
        with pytest.raises(ro.InvalidCall, match="is being deleted: finish that first"):
            ro.deploy(account(2))
        with pytest.raises(ro.InvalidCall, match="is being deleted: finish that first"):
            class_changes.rename_class("Account", "Konto")
    class_changes.delete_class("Account")
    ro.deploy(account(1))
    assert home.seen.remote().result(WITHIN_S) == [1, 0, [], 0]


def test_the_command_line(tmp_path: Path) -> None:
    ro.namespace("Account").get("home").pay.remote(1).result(WITHIN_S)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rayobjects", *arguments],
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
        )

    done = run("rename", "Account", "Konto")
    assert done.returncode == 0, done.stderr
    assert "is called Konto now" in done.stderr
    assert run("list", "Konto").stdout == "home\n"
    former = run("delete-class", "Account", "--yes")
    assert former.returncode == 1
    assert "Account is a former name of the class that is called Konto now" in former.stderr
    asked = run("delete-class", "Konto")
    assert asked.returncode == 1
    assert "--yes" in asked.stderr
    done = run("delete-class", "Konto", "--yes")
    assert done.returncode == 0, done.stderr
    assert "Deleted Konto and its 1 object." in done.stderr
    gone = run("delete-class", "Konto", "--yes")
    assert gone.returncode == 1
    assert "no class 'Konto' is deployed" in gone.stderr
