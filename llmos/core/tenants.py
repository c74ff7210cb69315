"""What each tenant holds, may hold and has spent, with what its descendants do counted in."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from llmos.core import reasons
from llmos.core.free import CPU, GPU, MEMORY, Grid
from llmos.core.resources import ROUNDING, Resources
from llmos.core.types import Job, Tenant

_ROOT = Tenant("")
_undeclared = lru_cache(Tenant)


class Account:
    """One tenant's books: ``held`` and ``used`` by kind of resource, ``burnt`` GPU-seconds spent or promised."""

    def __init__(self, tenant: Tenant, width: int) -> None:
        self.tenant = tenant
        self.id = tenant.id
        self.parent: Account | None = None
        self.children: list[Account] = []
        self.held = [0.0] * width
        self.used = [0.0] * width
        self.quota: list[float] = []
        self.burnt = 0.0

    @property
    def path(self) -> Iterator[Account]:
        """It and all above it."""
        account: Account | None = self
        while account:
            yield account
            account = account.parent

    def own(self) -> Account:
        """An account of what it holds itself, without its children; of weight 1 beside them."""
        mine = Account(Tenant(self.id), len(self.held))
        mine.held, mine.used = self.held, self.used
        for child in self.children:
            mine.held = _plus(mine.held, child.held, -1)
            mine.used = _plus(mine.used, child.used, -1)
        return mine


class Ledger:
    """The accounts of all tenants on one cluster.

    ``present`` are those that have jobs. One that nobody declared has one share and no limits; its account is opened
    when it is asked for. ``budgets`` says whether any has one, ``limits`` whether any has a limit.
    """

    def __init__(self, tenants: Iterable[Tenant], grid: Grid, present: Iterable[str]) -> None:
        self._grid = grid
        self.total = grid.whole
        self.root = Account(_ROOT, len(self.total))
        self._accounts: dict[str, Account] = {}
        tenants = sorted(tenants, key=lambda tenant: tenant.id)
        self.budgets = any(tenant.budget_gpu_s is not None for tenant in tenants)
        self.limits = self.budgets or any(one.quota or one.borrow_limit is not None for one in tenants)
        for tenant in tenants:
            self._accounts[tenant.id] = Account(tenant, len(self.total))
        for tenant in tenants:
            self._open(self._accounts[tenant.id])
        for tenant in tenants:
            used = _vector(tenant.used, grid)
            for account in self._accounts[tenant.id].path:
                account.used = _plus(account.used, used)
                account.burnt += tenant.spent_gpu_s
        self._present = frozenset(present)
        self._unopened: dict[str, Sequence[float]] = {}

    def account(self, tenant: str) -> Account:
        """The books of ``tenant``."""
        if tenant not in self._accounts:
            self._accounts[tenant] = Account(_undeclared(tenant), len(self.total))
            self._open(self._accounts[tenant])
            if held := self._unopened.get(tenant):
                self.hold(tenant, held, 0.0)
        return self._accounts[tenant]

    def hold(self, tenant: str, amount: Sequence[float], gpu_s: float, sign: int = 1) -> None:
        """``tenant`` has come to hold ``amount``, and is to use ``gpu_s`` GPU-seconds with it. -1: not any more."""
        account: Account | None = self.account(tenant)
        while account:
            account.held = _plus(account.held, amount, sign)
            account.burnt += sign * gpu_s
            account = account.parent

    def seat(self, held: Mapping[str, tuple[int, Sequence[float]]]) -> None:
        """Each tenant has so many jobs that together hold so much."""
        self._unopened = {tenant: amount for tenant, (_, amount) in held.items() if tenant not in self._accounts}
        for tenant, account in list(self._accounts.items()):
            if tenant in held:
                self.hold(account.id, held[tenant][1], 0.0)

    def promise_all(self, promised: Iterable[tuple[str, float]]) -> None:
        """Each tenant is to use so many GPU-seconds."""
        for tenant, gpu_s in promised:
            for account in self.account(tenant).path:
                account.burnt += gpu_s

    def share(self, held: Sequence[float], account: Account) -> float:
        """The dominant share: the largest part of the cluster's resources of one kind, by the account's weight."""
        return max(map(operator.mul, held, self.weights(account)), default=0.0)

    def weights(self, account: Account) -> list[float]:
        """What one unit of each kind of resource adds to the account's share of that kind."""
        share = max(account.tenant.share, 1e-9)
        return [1 / (total * share) if total > 0 else 0.0 for total in self.total]

    def refusal(self, job: Job, amount: Sequence[float], gpu_s: float) -> str:
        """Why ``job`` may not hold ``amount`` more, and use ``gpu_s`` GPU-seconds, or the empty string."""
        if not self.limits:
            return ""
        for account in self.account(job.tenant).path:
            if account.quota and (why := self._over_quota(account, amount)):
                return why
            if account.tenant.borrow_limit is not None and (why := self._over_borrowed(account, amount)):
                return why
            budget = account.tenant.budget_gpu_s
            if budget is not None and gpu_s and account.burnt + gpu_s > budget + ROUNDING:
                left = max(budget - account.burnt, 0.0) / 3600
                return (
                    f"tenant {account.id} has {left:.4g} GPU-hours of its budget of {budget / 3600:.4g} left; "
                    f"this needs {gpu_s / 3600:.4g}"
                )
        return ""

    def exhausted(self, job: Job) -> str:
        """Why ``job`` may not go on: the tenant whose budget is used up, in words; or the empty string."""
        if not self.budgets:
            return ""
        for account in self.account(job.tenant).path:
            budget = account.tenant.budget_gpu_s
            if budget is not None and account.burnt > budget + ROUNDING:
                return f"tenant {account.id} has used its budget of {budget / 3600:.4g} GPU-hours"
        return ""

    def _over_quota(self, account: Account, amount: Sequence[float]) -> str:
        for kind, (held, more, most) in enumerate(zip(account.held, amount, account.quota, strict=True)):
            if most > 0 and more > 0 and held + more > most + ROUNDING:
                return (
                    f"tenant {account.id} holds {self._amount(kind, held)} of its quota of "
                    f"{self._amount(kind, most)}; this needs {self._amount(kind, more)}"
                )
        return ""

    def _over_borrowed(self, account: Account, amount: Sequence[float]) -> str:
        most = self.guaranteed(account) * (1 + (account.tenant.borrow_limit or 0.0))
        for kind, (held, more, total) in enumerate(zip(account.held, amount, self.total, strict=True)):
            if more > 0 and total > 0 and held + more > most * total + ROUNDING:
                return (
                    f"tenant {account.id} holds {self._amount(kind, held)}; its share and what it may borrow are "
                    f"{self._amount(kind, most * total)}; this needs {self._amount(kind, more)}"
                )
        return ""

    def guaranteed(self, account: Account) -> float:
        """The part of the cluster that is the account's own."""
        for id in sorted(self._present.difference(self._accounts)):  # they have a share, too
            self.account(id)
        part = 1.0
        for one in account.path:
            if one.parent:
                part *= one.tenant.share / max(sum(child.tenant.share for child in one.parent.children), 1e-9)
        return part

    def _amount(self, kind: int, value: float) -> str:
        vector = [0.0] * len(self.total)
        vector[kind] = value
        empty = {CPU: "0 CPUs", GPU: "0 GPUs", MEMORY: "0 GiB"}.get(kind, "nothing")
        return reasons.amount(self._grid.resources(vector)) if value > ROUNDING else empty

    def _open(self, account: Account) -> None:
        """Put ``account`` below its parent: below the root where that is unknown, or would be its own descendant."""
        parent = self._accounts.get(account.tenant.parent or "")
        loops = parent is not None and any(one is account for one in parent.path)
        account.parent = self.root if parent is None or loops else parent
        account.parent.children.append(account)
        if account.tenant.quota is not None:
            account.quota = _vector(account.tenant.quota, self._grid)


def _vector(amount: Resources, grid: Grid) -> list[float]:
    """``amount`` by kind; of kinds that no node has, nothing."""
    known = tuple(pair for pair in amount.custom if pair[0] in grid.custom)
    vector = grid.vector(replace(amount, custom=known))
    assert vector is not None
    return vector


def _plus(one: Sequence[float], other: Sequence[float], sign: int = 1) -> list[float]:
    return list(map(operator.add if sign > 0 else operator.sub, one, other))
