"""One case at work: its run folder, its build log, and what it has from the store."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from qcase import events
from qcase.arch import Arch
from qcase.events import Emit
from qcase.host.crash_cleanup import remove_tree
from qcase.host.trees import Tree
from qcase.host.workspace_folders import target_of
from qcase.model import Phase
from qcase.prepare import run_folders
from qcase.prepare.run_folders import CaseLayout, next_case_run_id
from qcase.store import keys
from qcase.store.content import Entry, Kind
from qcase.store.store import Store
from qcase.suite.cases import Case


def named_for(name: str, arch: Arch) -> str:
    """Return the name under which the store keeps the history of a thing's keys."""
    return f"{name} {arch}"


class CaseWork:
    """The run folder, the log and the store entries of one case. `stack` closes what the case holds."""

    def __init__(
        self, case: Case, layout: CaseLayout, root: Path, arch: Arch, store: Store, emit: Emit, log: Path | Tree, stack: ExitStack
    ) -> None:
        self.case = case
        self.log = log
        self.emit = emit
        self.store = store
        self.stack = stack
        self._arch = arch
        self._layout = layout
        self._root = root
        self._run_dir: Path | None = None
        self._lock = threading.Lock()
        self._read: dict[str, Tree] = {}
        self._reading = threading.Lock()

    def warn(self, message: str) -> None:
        self.emit(events.Warned(message, self.case.display_name))

    def say(self, what: str) -> None:
        self.emit(events.PhaseStarted(self.case.display_name, Phase.PREPARE, what))

    def scratch(self) -> Path:
        """Return the run folder, created on first use. The case's end removes it, or the guardian if qcase is killed."""
        with self._lock:
            if self._run_dir is None:
                claimed = run_folders.claimed(self._layout.run_dir, next_case_run_id, self.warn, target_of(self._root))
                self._run_dir = self.stack.enter_context(claimed)
            return self._run_dir

    def emptied(self, name: str) -> Path:
        """Create an empty folder in the run folder. Removes an earlier one: a build runs a second time if the store was full."""
        folder = self.scratch() / name
        remove_tree(folder)
        folder.mkdir()
        return folder

    def gather(self, log: Path | Tree, name: str) -> None:
        """Append the build log of a subcase to the log of its group."""
        if log == self.log or not log.is_file():
            return
        part = log if isinstance(log, Tree) else Tree(log.parent, log.name)
        whole = self.log if isinstance(self.log, Tree) else Tree(self.log.parent, self.log.name)
        with self._lock, os.fdopen(whole.appended(), "ab") as file, part.opened() as fd:
            file.write(f"==== {name}\n".encode())
            while data := os.read(fd, 1 << 20):
                file.write(data)

    def fetch(self, kind: Kind, key: keys.Key, build: Callable[[Tree], None], name: str) -> Entry:
        """Return an entry of the store, built by `build` if it is missing, and held until the case ends."""
        made_for = named_for(name, self._arch)
        said: list[events.Missed] = []

        def build_and_say_why(path: Tree) -> None:
            if not said:  # a full store makes the build run a second time
                why = self.store.notes.why_missed(kind, key, made_for)
                said.append(events.Missed(self.case.display_name, f"the {kind} of {name}", tuple(why)))
                self.emit(said[0])
            build(path)

        return self.stack.enter_context(
            self.store.get_or_build(
                kind,
                key,
                build_and_say_why,
                scratch=self.scratch(),
                made_for=made_for,
                on_wait=self.say,
                warn=self.warn,
            )
        )

    def read_by_all(self, key: keys.Key, build: Callable[[Tree], None], name: str) -> Tree:
        """Return a store entry that all builds of the case share.

        Each case reads it from the store once: that checks each of its files, and a staging root has thousands.
        """
        with self._reading:
            if key.digest not in self._read:
                self._read[key.digest] = self.fetch(Kind.OVERLAY, key, build, name).content
            return self._read[key.digest]
