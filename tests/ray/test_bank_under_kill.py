"""Guarantee 5 on Ray, with a bank: no money is made or lost and every transfer is applied once,
though hosts are killed all the time, and a client too. No line of the bank's code is there for it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ray_cluster import ATTACHED, RayCluster, objects_on
from test_examples_local import example

import rayobjects as ro
from rayobjects.runtime import admin

ROUNDS = int(os.environ.get("RAYOBJECTS_ROUNDS", "1"))
"""`make soak` kills all hosts more often."""

pytestmark = pytest.mark.timeout(300 * ROUNDS)

KILLS = 6 * ROUNDS
OWN_KILLS = 3
"""Those of dedicated objects run one call at a time: after the fourth death in a row that is taken
for what kills them (see `runtime.probation`)."""
KILL_EVERY_S = 1.0
PAYERS = 8
START = 1_000
WITHIN_S = 90.0

bank = sys.modules["bank"] = example(
    "bank"
)  # as if it had been imported: it has a class of replies


class OwnAccount(bank.Account, hosting="dedicated"):  # type: ignore[misc, name-defined]
    """Each has an actor of its own."""


class OwnLimitedAccount(bank.LimitedAccount, hosting="dedicated"):  # type: ignore[misc, name-defined]
    """Each has an actor of its own."""


ACCOUNTS = {"Account": 100, "LimitedAccount": 100, "OwnAccount": 3, "OwnLimitedAccount": 3}

CLIENT = """
import asyncio, random, sys
import rayobjects as ro

async def main():
    while True:
        await asyncio.gather(*(pay(number) for number in range(8)))

async def pay(number):
    class_name = random.choice(["Account", "LimitedAccount"])
    sender, to = random.sample([f"a{number}" for number in range(100)], 2)
    token = f"{class_name} client {random.getrandbits(64):x}"
    try:
        await ro.namespace(class_name).get(sender).transfer.remote(to, 1, token)
        print(token, flush=True)
    except ro.RayObjectsError:
        pass  # it has not happened, or it is not known

ro.init()
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def objects(ray_cluster: RayCluster) -> Iterator[None]:
    with objects_on(ray_cluster, shards=2):
        yield


class Payers:
    """Tasks that pay in all directions until it is said that it is enough."""

    def __init__(self) -> None:
        self.paid: list[str] = []
        self.refused: list[str] = []
        self.unknown: list[str] = []
        self.enough = False

    async def run(self, payer: int) -> None:
        dice = random.Random(payer)
        count = 0
        while not self.enough:
            # Those with actors of their own are few, and each of their kills takes longer.
            weights = (6, 6, 1, 1)
            class_name = dice.choices(list(ACCOUNTS), weights)[0]
            sender, to = dice.sample(range(ACCOUNTS[class_name]), 2)
            count += 1
            token = f"{class_name} {payer}.{count}"
            account = ro.namespace(class_name).get(f"a{sender}")
            try:
                await account.transfer.remote(f"a{to}", dice.randint(1, 9), token)
                self.paid.append(token)
            except ro.Deadlock:
                self.refused.append(token)
            except (ro.Unavailable, ro.MethodError):  # no host in time; taken for deadly
                self.unknown.append(token)


def kill_hosts(*, also_own: bool) -> int:
    """Kills the processes of the hosts that answer, all at once; returns how many."""
    pids = [
        host.figures["pid"]
        for host in admin.status().hosts
        if "pid" in host.figures and (also_own or host.name.startswith("default/"))
    ]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return len(pids)


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def settled() -> bool:
    """Whether everything that was begun or told has come to its end. What was running in death
    after death may have been given up: somebody has it retried."""
    left = admin.list_promises(["tell", "intent"], None, False, 1_000)
    for each in left:
        if each["failed"]:
            kind, key = each["kind"], each["key"]
            admin.settle_promise(each["class"], each["name"], "retry", kind, key)
    return not left


async def entries_of(class_name: str) -> list[tuple[str, Any]]:
    """(account, entry) of all accounts, each account's newest first."""
    names = [f"a{number}" for number in range(ACCOUNTS[class_name])]
    space = ro.namespace(class_name)
    found = await asyncio.gather(*(space.get(name).statement.remote(100_000) for name in names))
    return [(name, entry) for name, entries in zip(names, found, strict=True) for entry in entries]


def test_guarantee_5_no_money_is_made_or_lost() -> None:
    ro.deploy(bank.Account, bank.LimitedAccount, OwnAccount, OwnLimitedAccount)
    client: subprocess.Popen[str] | None = None

    async def play() -> tuple[Payers, str]:
        nonlocal client
        await asyncio.gather(
            *(
                ro.namespace(class_name).get(f"a{number}").deposit.remote(START, "start")
                for class_name, count in ACCOUNTS.items()
                for number in range(count)
            )
        )
        payers = Payers()
        paying = asyncio.gather(*(payers.run(number) for number in range(PAYERS)))
        client = subprocess.Popen(  # noqa: ASYNC220  (it returns at once)
            [sys.executable, "-c", CLIENT],
            env={name: value for name, value in os.environ.items() if name not in ATTACHED},
            stdout=subprocess.PIPE,
            text=True,
        )
        killed = 0
        for kill in range(KILLS):
            before = len(payers.paid)
            await asyncio.sleep(KILL_EVERY_S)
            await until(lambda before=before: len(payers.paid) > before + 10 or paying.done())
            killed += await asyncio.to_thread(
                kill_hosts, also_own=kill % 3 == 0 and kill < 3 * OWN_KILLS
            )
            if kill == KILLS - 3:  # in the middle of its transfers
                client.kill()
        payers.enough = True
        await asyncio.wait_for(paying, WITHIN_S)
        assert killed > KILLS
        said, _ = client.communicate()
        deadline = time.monotonic() + WITHIN_S
        while not await asyncio.to_thread(settled):  # also what the client had begun
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        return payers, said

    try:
        payers, said = asyncio.run(play())
        by_client = said.splitlines()[:-1]  # the last one may be cut off
        acknowledged = set(payers.paid) | set(by_client)
        assert len(payers.paid) > 50
        for class_name, count in ACCOUNTS.items():
            entries = asyncio.run(entries_of(class_name))
            newest: dict[str, int] = {}
            out: dict[str, tuple[str, str, int]] = {}
            came: dict[str, tuple[str, str, int]] = {}
            for name, entry in entries:
                newest.setdefault(name, entry.balance)
                if entry.amount < 0:
                    assert entry.note not in out, "paid twice"
                    out[entry.note] = (name, entry.other, -entry.amount)
                elif entry.note != "start":
                    assert entry.note not in came, "received twice"
                    came[entry.note] = (entry.other, name, entry.amount)
            assert sum(newest.values()) == count * START
            assert out == came
            of_class = {token for token in acknowledged if token.startswith(f"{class_name} ")}
            assert of_class, f"nothing was paid between objects of {class_name}"
            assert of_class <= out.keys()
            assert not out.keys() & set(payers.refused)
            unknown = {token for token in out if " client " in token} | set(payers.unknown)
            assert out.keys() - of_class <= unknown
        assert admin.list_promises(["schedule", "tell", "intent"], None, True, 10) == []
    finally:
        if client is not None:
            client.kill()
            client.wait()
