"""The part of a run that plans and builds of overlays use."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Protocol

from qcase.arch import Arch
from qcase.events import Emit
from qcase.prepare.base_guest import BaseGuest
from qcase.prepare.toolchain_choice import ToolchainChoice
from qcase.store.store import Store
from qcase.suite.cases import Workspace
from qcase.suite.ignored import Ignored

if TYPE_CHECKING:
    from qcase.containers.engine import Engine
    from qcase.guests.packages.supply import PackageSupplier

BUILDS_AT_ONCE = max(1, min(4, os.cpu_count() or 1))  # limit for all cases of a run together; a compiler may take gigabytes


class RunServices(Protocol):
    """Settings of a run, and its shared things, each of which is found on first use. A `Session` provides them."""

    @property
    def workspace(self) -> Workspace: ...
    @property
    def arch(self) -> Arch: ...
    @property
    def target(self) -> str: ...
    @property
    def store(self) -> Store: ...
    @property
    def emit(self) -> Emit: ...
    @property
    def environ(self) -> dict[str, str]: ...
    @property
    def offline(self) -> bool: ...
    @property
    def base_guest(self) -> BaseGuest: ...
    @property
    def toolchains(self) -> ToolchainChoice: ...
    @property
    def supply(self) -> PackageSupplier: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def ignored(self) -> Ignored: ...
    @property
    def building(self) -> threading.BoundedSemaphore: ...

    def stop(self) -> None:
        """Stop all child processes and containers of the run."""
