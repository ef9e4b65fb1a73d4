"""Upkeep of the store around a run: leftovers go at its start, and what is too much at its end."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from qcase import events
from qcase.config.fields import parse_size
from qcase.errors import InfraError
from qcase.events import Emit
from qcase.prepare import run_folders
from qcase.store import collect
from qcase.store.store import Store
from qcase.suite.cases import Workspace


@dataclass
class StoreUpkeep:
    """Removes leftovers at the start of a run, and collects garbage at its end if the store has grown."""

    workspace: Workspace
    store: Store
    emit: Emit
    _before: list[int] | None = None

    def begin(self) -> None:
        """Remove leftovers of dead runs. Best effort: errors here never fail the run."""
        run_folders.sweep_folders(self.workspace.root)
        if not self.store.readonly:
            with contextlib.suppress(OSError, InfraError):
                self.store.sweep_staged()
            with contextlib.suppress(OSError, InfraError):
                collect.sweep_unfinished(self.store)
            with contextlib.suppress(OSError, InfraError):
                run_folders.sweep_runs(self.store)
        self._before = self._download_times()

    def end(self) -> None:
        """Run the garbage collector if this run, or another one meanwhile, has added something to the store."""
        if self.store.added or self._has_fetched():
            self._collect()

    def _has_fetched(self) -> bool:
        """Tell whether this run or another one has added guests or packages to the store since the start."""
        return not self.store.readonly and self._before is not None and self._before != self._download_times()

    def _download_times(self) -> list[int]:
        """Return the mtimes (ns) of the guest and package download folders. Their contents are not scanned."""
        times = []
        for name in ("guests", "downloads/packages", "downloads/crates", "downloads/git"):
            with contextlib.suppress(OSError):
                times.append((self.store.root / name).stat().st_mtime_ns)
        return times

    def _collect(self) -> None:
        cache = self.workspace.config.cache
        limits = collect.Limits(max_size=parse_size(cache.max_size), min_free=parse_size(cache.min_free))
        try:
            collected = collect.collect(self.store, limits)
        except (OSError, InfraError) as error:
            self.emit(events.Warned(f"the store could not be tidied up: {error}"))
            return
        if collected.gone:
            count, freed = len(collected.gone), collected.freed / 2**20
            self.emit(events.Progress(f"{count} of the store's entries are gone, {freed:.0f} MiB: {collected.gone[0].why}"))
