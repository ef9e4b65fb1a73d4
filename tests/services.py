"""Services of a run for builds that tests start without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from qcase.containers.engine import Engine
from qcase.containers.step import Step, StepResult
from qcase.guests.packages.supply import PackageSupplier
from qcase.host.trees import Tree
from qcase.store import keys


def refuse(*_: object) -> NoReturn:
    raise AssertionError("this build must not need it")


@dataclass(frozen=True)
class Services:
    """The services that a build of a test has, and no others."""

    say: Callable[[str], None] = lambda _: None
    warn: Callable[[str], None] = lambda _: None
    engine: Callable[[], Engine] = refuse
    run: Callable[[Step], StepResult] = refuse
    image: Callable[[str], str] = refuse
    identity: Callable[[str], str] = str
    staging: Callable[[], Tree] = refuse
    supply: Callable[[], PackageSupplier] = refuse
    apk: Callable[[], Tree] = refuse
    checks: Callable[[], Tree | None] = lambda: None
    download: Callable[[keys.Key, str, Callable[[Tree], None]], Tree] = refuse
