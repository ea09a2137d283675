"""A bank: money moves between accounts, and none is made or lost, whoever crashes meanwhile.

    rayobjects serve examples/bank.py

    url=http://127.0.0.1:8000/objects
    curl $url/Account/ann/deposit --json '{"amount": 100}'
    ann='baggage: user=ann' bob='baggage: user=bob'
    curl $url/Account/ann/transfer -H "$ann" --json '{"to": "bob", "amount": 30, "note": "Lunch"}'
    curl $url/Account/bob/statement -H "$bob" --json '{}'

There are two kinds of accounts, for the two ways of moving money:

    Account         tells the other one. What is told belongs to the transfer: it is sent if that
                    takes effect, and applied once. Nothing waits, and no two accounts wait for each
                    other.
    LimitedAccount  asks the other one, which may refuse: it holds no more than its limit. The
                    transfer waits for the answer, and where that is no, it has not happened. If the
                    host dies in the middle, the next one runs it again, and what was applied is not
                    applied twice.

Neither has a line of code for any of that.

Who asks is part of the request, and goes on with all that comes of it. The filter at the end lets
nobody but its owner at an account, and a line of a statement says by whom it was caused, though the
money came from elsewhere. It is the proxy in front that knows the user: it sets that header, and
takes it from those who send it themselves.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import rayobjects as ro

STATEMENT_ENTRIES = 100


@dataclass
class Entry:
    """A line of a statement.

    Attributes:
        amount: what came in; what went out is negative.
        other: the account that it came from or went to; "" for cash.
        at: when, in ISO 8601.
        balance: after it.
        by: the user who asked for it; "" if that is not known.
    """

    amount: int
    other: str
    note: str
    at: str
    balance: int
    by: str = ""


class _Book(ro.DurableObject):
    """What both kinds have: a balance, and a statement."""

    balance: int = ro.durable(0)
    entries: int = ro.durable(0)

    def deposit(self, amount: int, note: str = "cash") -> int:
        """Pays cash in; returns the balance."""
        self._book(_positive(amount), "", note)
        return self.balance

    def withdraw(self, amount: int, note: str = "cash") -> int:
        """Pays cash out; returns the balance."""
        self._pay(amount, "", note)
        return self.balance

    def statement(self, limit: int = STATEMENT_ENTRIES) -> list[Entry]:
        """The last entries, the newest first."""
        found = self.storage.list(reverse=True, limit=limit).values()
        return [Entry(**each) for each in found]

    def _other(self, name: str) -> Any:
        return ro.namespace(self.id.class_name).get(name)

    def _pay(self, amount: int, other: str, note: str) -> None:
        if _positive(amount) > self.balance:
            raise ro.InvalidCall(f"{self.id.name} has {self.balance} only", status=409)
        self._book(-amount, other, note)

    def _book(self, amount: int, other: str, note: str) -> None:
        self.balance += amount
        self.entries += 1
        self.storage[f"{self.entries:012}"] = {
            "amount": amount,
            "other": other,
            "note": note,
            "at": self.now().isoformat(),
            "balance": self.balance,
            "by": _user(),
        }


class Account(_Book):
    """Tells other accounts what they get."""

    def transfer(self, to: str, amount: int, note: str = "") -> int:
        """Pays to another account; returns the balance. The money is there soon."""
        self._pay(amount, to, note)
        self._other(to).receive.tell(self.id.name, amount, note)
        return self.balance

    @ro.internal
    def receive(self, sender: str, amount: int, note: str) -> None:
        """For other accounts."""
        self._book(amount, sender, note)


class LimitedAccount(_Book):
    """Asks other accounts whether they take it."""

    limit: int = ro.durable(1_000_000)

    def set_limit(self, limit: int) -> None:
        """The most that the account may hold after a transfer to it."""
        self.limit = limit

    async def transfer(self, to: str, amount: int, note: str = "") -> int:
        """Pays to another account; returns the balance. The money is there.

        Two that pay to each other at the same moment wait for each other: then the younger transfer
        fails with `ro.Deadlock`, and has not happened: call it again.
        """
        self._pay(amount, to, note)
        await self._other(to).receive.remote(self.id.name, amount, note)
        return self.balance

    @ro.internal
    def receive(self, sender: str, amount: int, note: str) -> None:
        """For other accounts."""
        if self.balance + amount > self.limit:
            raise ro.InvalidCall(f"{self.id.name} may not hold more than {self.limit}", status=409)
        self._book(amount, sender, note)


def _positive(amount: int) -> int:
    if amount <= 0:
        raise ro.InvalidCall(f"an amount is more than 0, not {amount}", status=422)
    return amount


def _user() -> str:
    return ro.context().get("user", "")


async def owners_only(call: ro.MethodCall, proceed: Callable[[], Awaitable[Any]]) -> Any:
    """Around every call: what comes from outside is for the owner, but anybody may pay in."""
    if call.kind != "stub" and call.method != "deposit" and _user() != call.id.name:
        why = f"{call.id.name} is the account of somebody else: send `baggage: user=…`"
        raise ro.InvalidCall(why, status=403)
    return await proceed()


filters = [owners_only]
