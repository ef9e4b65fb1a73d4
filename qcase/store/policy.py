"""Policy of the store: where it is, and who may write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from qcase.errors import UsageError
from qcase.host.locks import CACHE_DIR_VARIABLE
from qcase.store.content import Kind

DISABLE_VARIABLE = "QCASE_DISABLE_ROOTFS_CACHE"


class CacheWrite(StrEnum):
    """Values of `[cache] write`."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True)
class Policy:
    """Kinds of results that are written to the store. Stored entries are read in any case."""

    images: bool = True
    overlays: bool = True

    def writes(self, kind: Kind) -> bool:
        return self.images if kind is Kind.IMAGE else self.overlays


def policy(environ: Mapping[str, str], write: CacheWrite | str = CacheWrite.AUTO, *, keep_images: bool = True) -> Policy:
    """Return the write policy for `[cache] write` and the environment.

        write    nothing set     CI set           QCASE_DISABLE_ROOTFS_CACHE set
        auto     both            overlays only    overlays only
        always   both            both             both
        never    neither         neither          neither

    Set means set, to whatever value, as in the original. Without `keep_images` no image is written in any case.
    """
    chosen = CacheWrite(write)
    if chosen is CacheWrite.NEVER:
        return Policy(images=False, overlays=False)
    asked_not_to = chosen is CacheWrite.AUTO and ("CI" in environ or DISABLE_VARIABLE in environ)
    return Policy(images=keep_images and not asked_not_to, overlays=True)


def default_root(environ: Mapping[str, str]) -> Path:
    """Return the store's default root. Raises `UsageError` if the environment names no usable place."""
    if named := environ.get(CACHE_DIR_VARIABLE):
        return resolve_root(named, environ, what=CACHE_DIR_VARIABLE)
    # The XDG base directory specification: a relative value is invalid and to be ignored.
    if (base := environ.get("XDG_CACHE_HOME", "")).startswith("/"):
        return resolve_root(f"{base}/qcase", environ, what="XDG_CACHE_HOME")
    return resolve_root("~/.cache/qcase", environ, what="HOME")


def resolve_root(value: str, environ: Mapping[str, str], *, what: str = "--cache-dir") -> Path:
    """Make a user's path absolute: `~` is the home folder, a relative path starts at the current folder."""
    if "\0" in value or not value:
        raise UsageError("no usable folder for the cache", where=f"{what}={value!r}")
    if value == "~" or value.startswith("~/"):
        home = environ.get("HOME", "")
        if not home.startswith("/"):
            raise UsageError("there is no home folder to keep the cache in", where=what, hint=f"set {CACHE_DIR_VARIABLE}")
        return Path(os.path.normpath(home + value[1:]))
    return Path(os.path.normpath(Path.cwd() / value))
