"""Values that are made once for a run, by the first thread that asks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from qcase.disk import image_digest
from qcase.errors import QcaseError

T = TypeVar("T")


@dataclass
class _Cell:
    """A value that is computed at most once. `error`: the exception of the failed computation."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    done: bool = False
    value: Any = None
    error: Exception | None = None


class Once:
    """Values of a run by name. The first thread that asks for a value computes it, the others wait.

    Errors (`QcaseError`, `OSError`) are kept like values: an error of one case would hit all cases, after a download of 70 MB
    each. Each name has its own lock, so a case without an engine does not wait for a toolchain build.
    """

    def __init__(self) -> None:
        self._cells: dict[str, _Cell] = {}

    def get(self, name: str, make: Callable[[], T]) -> T:
        """Return the value of this name; `make` computes it if there is none yet."""
        cell = self._cells.setdefault(name, _Cell())
        with cell.lock:
            if not cell.done:
                try:
                    cell.value = make()
                except (QcaseError, OSError) as error:
                    cell.error = error
                cell.done = True
        if cell.error is not None:
            raise cell.error.with_traceback(None)
        value: T = cell.value
        return value

    def of_file(self, name: str, path: Path, make: Callable[[], T]) -> T:
        """Return the result of `make`, which reads the file `path`, cached by the file's stat data.

        Nothing is cached for a file whose last write is less than two seconds old: another write could leave the stat data
        unchanged.
        """
        facts = image_digest.facts_of(path)
        if image_digest.is_young(facts):
            return make()
        return self.get(f"{name} {path} {sorted(image_digest.identity_of(facts).items())}", make)

    def known(self, name: str) -> Any:
        """Return the value of this name, None if there is none. Does not wait for a thread that computes it."""
        cell = self._cells.get(name)
        return None if cell is None else cell.value

    def put(self, name: str, value: object) -> None:
        """Set the value of this name, in place of any other one."""
        self._cells[name] = _Cell(done=True, value=value)


class shared_property(Generic[T]):  # noqa: N801 - it is used as `property` is
    """A property that is computed once and kept in the object's `once`, under the property's name."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, sharer: None, owner: type) -> shared_property[T]: ...
    @overload
    def __get__(self, sharer: object, owner: type) -> T: ...
    def __get__(self, sharer: Any, owner: type) -> shared_property[T] | T:
        if sharer is None:
            return self
        once: Once = sharer.once
        return once.get(self._name, lambda: self._make(sharer))
