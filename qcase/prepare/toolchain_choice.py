"""Toolchain images of a run: the image that a name stands for, and its identity, which enters keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qcase import events
from qcase.config.image_lock import Lock
from qcase.config.workspace_file import WorkspaceConfig
from qcase.errors import InfraError
from qcase.events import Emit
from qcase.prepare.once import Once, shared_property
from qcase.toolchains import images, records

if TYPE_CHECKING:
    from qcase.containers.engine import Engine


@dataclass(frozen=True)
class Pins:
    """The lock of toolchain images for a run. `refuse`: an image that differs from its pin is an error, else one warning."""

    root: Path
    trusted: bool
    refuse: bool
    emit: Emit
    once: Once

    @shared_property
    def lock(self) -> Lock:
        return records.lock_of(self.root, trusted=self.trusted)

    def check(self, image: records.Image) -> None:
        """Check an image against its pin."""
        if self.refuse:
            records.refuse_other(image, self.lock)
        elif said := images.departure(image, self.lock):
            self.once.get(f"departure of {image.name}", lambda: self.emit(events.Warned(said)))


@dataclass
class ToolchainChoice:
    """Finds or builds the toolchain images of a run, each once.

    `read_only_inspection`: nothing is built or fetched. `offline`: nothing is fetched. The claim of a foreign image about its own
    identity is accepted, except under `trust = "sandboxed"`.
    """

    config: WorkspaceConfig
    store_root: Path
    pins: Pins
    once: Once
    engine: Callable[[], Engine]
    emit: Emit
    read_only_inspection: bool = False
    offline: bool = False
    _changed: list[str] = field(default_factory=list)

    @property
    def changes(self) -> int:
        """Number of toolchain images whose rebuilt identity differs from the recorded one."""
        return len(self._changed)

    def identity(self, name: str) -> str:
        """Return the identity of a toolchain image. Asks the engine only if the store has no identity for this recipe.

        Raises `InfraError` if `read_only_inspection` is set and the image has not been built from this recipe.
        """
        return self.once.get(f"identity of {name}", lambda: self._identity(name))

    def image(self, name: str) -> records.Image:
        """Return a toolchain image: the image that the workspace's configuration names, else ours, built if it is missing."""
        return self.once.get(f"toolchain {name}", lambda: self._image(name))

    def _identity(self, name: str) -> str:
        foreign = self.config.toolchain.image(name)
        if foreign is not None:
            return self._foreign_identity(name, foreign)
        lock = self.pins.lock
        known = images.standing(name, self.store_root, lock=lock)
        if known is None and self.read_only_inspection:
            raise InfraError(
                f"the toolchain image {name} has not been built from this recipe, and its packages are part of the key",
                hint=f"`qcase images build {name}` builds it",
            )
        if known is None or (known.retry and not (self.read_only_inspection or self.offline)):
            return self.image(name).identity
        if not known.pinned:
            found = images.known(name, self.store_root, lock=lock)
            found = found if found is not None or self.read_only_inspection else self.image(name)
            if found is not None:
                self.pins.check(found)
        elif self.pins.refuse and name not in lock.pins:
            records.refuse_other(self.image(name), lock)
        return known.identity

    def _foreign_identity(self, name: str, foreign: str) -> str:
        from qcase.toolchains.foreign import foreign_identity, known_foreign

        by_digest = foreign_identity(foreign)
        if not self._believed:
            return by_digest
        before = known_foreign(foreign, self.store_root)
        if before is None:  # no stored entry was built with this image
            return by_digest if self.read_only_inspection else self.image(name).identity
        return before

    def _image(self, name: str) -> records.Image:
        from qcase.toolchains import foreign as foreign_module

        foreign = self.config.toolchain.image(name)
        if foreign is not None:
            image = foreign_module.foreign(
                foreign, self.engine(), self.store_root, self.emit, offline=self.offline, believed=self._believed
            )
        else:
            image = self._own(name)
        if self.once.known(f"identity of {name}") not in (None, image.identity):
            # The engine had lost the recorded image, and the rebuilt one has other packages.
            self.once.put(f"identity of {name}", image.identity)
            self._changed.append(name)  # last: a thread that sees the new number also sees the new identity
        return image

    def _own(self, name: str) -> records.Image:
        if self.offline:
            found = images.find(name, self.engine(), self.store_root, lock=self.pins.lock)
            if found is None:
                what = f"the toolchain image {name} is not built, and fetching is switched off"
                raise InfraError(what, hint=f"run once without --offline, or `qcase images build {name}`")
            image = found
        else:
            image = images.ensure(name, self.engine(), self.store_root, self.emit, lock=self.pins.lock)
        self.pins.check(image)
        return image

    @property
    def _believed(self) -> bool:
        return self.config.run.trust != "sandboxed"
