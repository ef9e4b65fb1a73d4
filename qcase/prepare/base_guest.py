"""The guest that the cases of a run boot, and the digest of its root filesystem image, the base image."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from qcase.arch import Arch
from qcase.config.disk_kinds import USUAL, Disks
from qcase.config.workspace_file import KernelBuild
from qcase.disk import image_digest
from qcase.events import Emit
from qcase.guests.guest import Guest, GuestChoice, Tools, for_disks, resolve
from qcase.host.workspace_folders import own_folder
from qcase.prepare.once import Once
from qcase.store.store import Store
from qcase.suite import root_images
from qcase.suite.cases import Workspace


class InputsMovedError(Exception):
    """Raised when an input changed after its key was computed: a toolchain image, sources, a repository or the base image."""


def memory_of(workspace: Workspace, store: Store) -> Path:
    """Return the folder of cached digests of base images; in the workspace if the store is read-only."""
    return own_folder(workspace.root) / "memory" if store.readonly else store.root / "memory"


@dataclass
class BaseGuest:
    """The guest of a run's architecture. First use may fetch or build it.

    `root`: the root filesystem in place of the configured one. `has_kernel`: the kernel comes from elsewhere, so the guest needs
    none. `hold` takes the lock that keeps the garbage collector away from guests.
    """

    workspace: Workspace
    arch: Arch
    store: Store
    emit: Emit
    once: Once
    tools: Tools
    hold: Callable[[], object]
    has_kernel: bool = False
    offline: bool = False
    root: root_images.Source | None = None
    _number: int = 0

    def with_root(self, root: root_images.Source) -> BaseGuest:
        """Return this guest with another root filesystem. Both share the made guests."""
        return replace(self, root=root, _number=0)

    @property
    def current(self) -> Guest:
        name = "guest" if self.root is None else f"guest {self.root}"
        return self.once.get(f"{name} {self._number}", self._find)

    def for_disks(self, disks: Disks) -> Guest:
        """Return the guest as a machine with these disks boots it. Raises `UsageError` if its kernel has no driver for them."""
        guest = self.current
        if disks == USUAL or guest.source is None:
            return guest
        kind = f"{' '.join(disks.kinds)} {bool(disks.serial)}"
        return self.once.get(f"guest {self.root} {self._number} {kind}", lambda: self._used(self._for_disks(guest, disks)))

    def _for_disks(self, guest: Guest, disks: Disks) -> Guest:
        return for_disks(guest, disks, self.store.root, notes=self._notes, emit=self.emit)

    @property
    def _notes(self) -> Path | None:
        return memory_of(self.workspace, self.store) / "guests" if self.store.readonly else None

    def check(self) -> None:
        """Drop the cached guest if the stat data of its files changed since the last check, because a run may take hours. The
        next use reads or builds the guest again.
        """
        number = self._number
        if not self.current.is_as_checked:
            self._number = number + 1  # the same for all threads that see it

    @property
    def digest(self) -> str:
        """The digest of the base image's current contents. A run may take hours, and another process may rewrite the image."""
        rootfs = self.current.rootfs
        memory = memory_of(self.workspace, self.store)
        return self.once.of_file("base", rootfs, lambda: image_digest.remembered_digest(rootfs, memory))

    def check_digest(self, digest: str) -> None:
        """Check that the base image still has this digest. Raises `InputsMovedError` if not, so that nothing is stored."""
        if self.digest != digest:
            raise InputsMovedError("the base image")

    def _find(self) -> Guest:
        config = self.workspace.config.guest[self.arch]
        kernel = None if self.has_kernel or isinstance(config.kernel, KernelBuild) else config.kernel
        spec = GuestChoice(self.root or config.rootfs, kernel, config.initrd, hostname=config.hostname, append=config.append)
        self.hold()  # before a garbage collector can remove the guest
        found = resolve(
            spec,
            self.arch,
            self.workspace.root,
            self.store.root,
            self.emit,
            offline=self.offline,
            notes=self._notes,
            tools=self.tools,
        )
        return self._used(found)

    def _used(self, guest: Guest) -> Guest:
        """Note the time of use of the guest's entries in the store."""
        for path in (guest.rootfs, guest.kernel, guest.initrd):
            if path is not None and path.parent.parent == self.store.root / "guests" and not self.store.readonly:
                with contextlib.suppress(OSError):
                    os.utime(path.parent)  # its last use
        return guest
