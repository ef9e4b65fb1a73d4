"""Named sets of read-only files, staged and renamed as a whole."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qcase import parsing
from qcase.errors import InfraError
from qcase.events import Emit, Progress, Warned
from qcase.host import file_state, locks
from qcase.host.files import flush, write_aside

Record = file_state.Record
FILE_SET_FORMAT = 1  # of an entry and its manifest; an entry of another format is made anew


def verify(folder: Path) -> str:
    """Read all files of a guest in the store, and describe their faults; empty if there is none."""
    manifest = read_manifest(folder)
    if manifest is None:
        return "it has no manifest"
    for name, record in sorted(manifest.items()):
        try:
            if file_state.sha256(folder / name) != record["sha256"]:
                return f"{name} is not what was stored"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


# --- entries of the store -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileSet:
    """A folder of read-only files with a manifest.

    `notes`: the folder for notes that may not be written into the store. `of`: the entry's inputs, where its name does not
    identify them.
    """

    cache: Path
    name: str
    files: tuple[str, ...]
    notes: Path | None = None
    of: str = ""

    @property
    def folder(self) -> Path:
        return self.cache / "guests" / self.name

    def use(self, make: Callable[[Path], None], emit: Emit) -> dict[str, str]:
        """Return sha256 by file name, after checking that all files are present and intact.

        Otherwise `make` fills a staged folder first.
        """
        return digests_of(self.records(make, emit))

    def records(self, make: Callable[[Path], None], emit: Emit) -> dict[str, Record]:
        """Do as `use`, and return the records with stat facts."""
        manifest = self._read_manifest()
        if manifest is not None and not self._changed(manifest):
            return manifest
        if self.notes is not None:
            return self._use_readonly(manifest, self.notes / self.name)
        try:
            with self._locked(emit):
                return self._use_locked(make, emit)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise InfraError(
                f"cannot keep the guest in the store: {error.strerror}",
                where=str(error.filename or self.folder),
                hint="free 1 GB there, or set QCASE_CACHE_DIR" if full else "",
            ) from None

    def looks(self, records: Mapping[str, Record]) -> dict[Path, file_state.Facts]:
        """Return the facts of records, by path. Where they tell nothing of later changes, those of now are the best there are."""
        paths = {self.folder / name: record["facts"] for name, record in records.items()}
        return {path: facts or file_state.facts(path) or {} for path, facts in paths.items()}

    def _use_locked(self, make: Callable[[Path], None], emit: Emit) -> dict[str, Record]:
        self._sweep()
        manifest = self._read_manifest()  # another process may have made it meanwhile
        if manifest is not None:
            changed = self._changed(manifest)
            if not changed:
                return manifest
            found = manifest | self._read_again(changed)
            if damaged := [name for name in self.files if found[name]["sha256"] != manifest[name]["sha256"]]:
                emit(Warned(f"{self.folder / damaged[0]} was changed or is gone: it is not used, and {self.name} is made anew"))
            else:
                _write_manifest(self.folder, found, self.of)
                return found
        return self._make(make)

    def _use_readonly(self, manifest: Mapping[str, Record] | None, noted: Path) -> dict[str, Record]:
        """Do as `use`, without making or writing the entry.

        A file with changed facts is read once, and its new facts noted elsewhere.
        """
        if manifest is None:
            raise InfraError(
                f"the guest {self.name} is not in the store, and nothing may be written there",
                where=str(self.folder),
                hint="run a case once, without --cache-readonly: that puts it there",
            )
        digests = digests_of(manifest)
        known = read_manifest(noted)
        if known is not None and digests_of(known) == digests and not self._changed(known):
            return known
        found = self._read_again(self.files)
        if damaged := [name for name in self.files if found[name]["sha256"] != digests[name]]:
            raise InfraError(
                "was changed after it was stored, and nothing may be written there",
                where=str(self.folder / damaged[0]),
                hint="run a case once, without --cache-readonly: then it is made anew",
            )
        with contextlib.suppress(OSError):  # it is read again the next time
            noted.mkdir(parents=True, exist_ok=True)
            _write_manifest(noted, found, self.of)
        return found

    def _make(self, make: Callable[[Path], None]) -> dict[str, Record]:
        staged = self._unique()
        staged.mkdir()
        try:
            make(staged)
            for name in self.files:
                path = staged / name
                path.chmod(0o444)
                flush(path)
            manifest = {name: file_state.read(staged / name) for name in self.files}
            _write_manifest(staged, manifest, self.of)
            if self.folder.exists():
                self.folder.rename(self._unique())  # swept below; a QEMU that has it open keeps it
            staged.rename(self.folder)
            flush(self.folder.parent)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        self._sweep()
        return manifest

    def _unique(self) -> Path:
        return self.folder.with_name(f".staging-{self.name}-{uuid.uuid4().hex[:12]}")

    def _sweep(self) -> None:
        """Remove leftovers of killed processes. The caller holds the lock, so no other process works there."""
        for left in self.folder.parent.glob(f".staging-{self.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in self.folder.glob(".manifest*"):
            left.unlink(missing_ok=True)

    def _read_manifest(self) -> dict[str, Record] | None:
        """Read the records by file name. None if the entry is missing, or of another version of qcase."""
        files = read_manifest(self.folder, self.of)
        return files if files is not None and sorted(files) == sorted(self.files) else None

    def _changed(self, manifest: Mapping[str, Record]) -> list[str]:
        """List the files that differ from the manifest, judged by stat alone."""
        return [name for name in self.files if not file_state.is_as_recorded(self.folder / name, manifest[name]["facts"])]

    def _read_again(self, names: Iterable[str]) -> dict[str, Record]:
        """Read files again and return their records. A file that cannot be read has no sha256."""
        return {name: _read(self.folder / name) or {"sha256": "", "facts": {}} for name in names}

    @contextmanager
    def _locked(self, emit: Emit) -> Iterator[None]:
        folder = self.cache / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        maker = f"another qcase, which makes {self.name}"
        with locks.held(folder / f"guest-{self.name}.lock", lambda: maker, lambda message: emit(Progress(message))):
            yield


def read_manifest(folder: Path, of: str = "") -> dict[str, Record] | None:
    try:
        manifest = parsing.from_json((folder / "manifest.json").read_bytes())
        files: dict[str, Record] = manifest["files"]
        good = manifest["format"] == FILE_SET_FORMAT and all(file_state.is_record(record) for record in files.values())
        good = good and (not of or manifest.get("of", of) == of)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return files if good else None


def digests_of(manifest: Mapping[str, Record]) -> dict[str, str]:
    return {name: record["sha256"] for name, record in manifest.items()}


def _read(path: Path) -> Record | None:
    """Return a file's record, None if it cannot be read."""
    try:
        return file_state.read(path)
    except OSError:
        return None


def _write_manifest(folder: Path, files: Mapping[str, Record], of: str) -> None:
    plain = {"format": FILE_SET_FORMAT, "files": files, **({"of": of} if of else {})}
    write_aside(folder / "manifest.json", (json.dumps(plain, indent=1, sort_keys=True) + "\n").encode(), flushed=True)
