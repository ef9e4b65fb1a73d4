"""Notes about the newest keys of each case, to explain why something is built."""

from __future__ import annotations

import contextlib
from pathlib import Path

from qcase import canonical
from qcase.host.files import write_aside
from qcase.store import keys
from qcase.store.content import Kind

HISTORY = 4  # keys of a case that are remembered


class Notes:
    """Notes in the folder `last/` of a store. `writes`: new keys are noted."""

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self._folder = folder
        self._writes = writes

    def history(self, kind: Kind, made_for: str) -> list[keys.Key]:
        """Return the keys that were last built for a case, newest first, to compare with `keys.differences`."""
        try:
            return [keys.Key(digest, parts) for digest, parts in canonical.parse(self._path(kind, made_for).read_bytes())]
        except (OSError, ValueError, TypeError):
            return []

    def why_missed(self, kind: Kind, key: keys.Key, made_for: str) -> list[str]:
        """Explain why a missing entry has to be built: list the changes since the nearest key of the same case."""
        found = keys.nearest(key, self.history(kind, made_for))
        if found is None:
            return ["not built before"]
        return found[1] or ["built before, and not kept"]

    def add(self, kind: Kind, key: keys.Key, made_for: str) -> None:
        """Note a key that was built for a case, also for an image that was not stored, to explain later builds."""
        if made_for and self._writes:
            newer = [key, *(old for old in self.history(kind, made_for) if old.digest != key.digest)]
            with contextlib.suppress(OSError):
                note = canonical.canonical([[old.digest, old.parts] for old in newer[:HISTORY]])
                write_aside(self._path(kind, made_for), note)

    def _path(self, kind: Kind, made_for: str) -> Path:
        return self._folder / f"{kind}-{canonical.digest(made_for)[:32]}.json"
