"""Recipes of toolchain images, and their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qcase import canonical, parsing, plugins
from qcase.arch import Arch
from qcase.errors import InfraError, UsageError
from qcase.guests import alpine
from qcase.model import Pipeline


def recipes_dir() -> Path:
    """Return the folder of the recipes: in a checkout, or inside the installed package."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "_images", package.parent / "images"):
        if (candidate / "base.toml").is_file():
            return candidate
    raise InfraError(
        "the recipes of the toolchain images are missing", where=str(package / "_images"), hint="install qcase again"
    )


def names(recipes: Path | None = None) -> list[str]:
    """Return the names of all images that have a recipe, sorted: of qcase and its plug-ins, or those in the folder `recipes`."""
    found = {path.parent.name for path in (recipes or recipes_dir()).glob("*/Containerfile")}
    added = [] if recipes else plugins.names(plugins.PIPELINES, tuple(Pipeline))
    return sorted(found.union(name for name in added if (folder_of(name) / "Containerfile").is_file()))


def folder_of(name: str, recipes: Path | None = None) -> Path:
    """Return the folder of an image's recipe: qcase's own, or that of the plug-in whose pipeline has the image's name.

    The folder need not exist.
    """
    if recipes is None and name in plugins.names(plugins.PIPELINES, tuple(Pipeline)):
        spec = plugins.load(plugins.PIPELINES, name, tuple(Pipeline), object)
        if isinstance(folder := getattr(spec, "recipes", None), Path):
            return folder / name
    return (recipes or recipes_dir()) / name


def recipe_digest(name: str, recipes: Path | None = None, *, above: tuple[str, ...] = ()) -> str:
    """Return the digest of a recipe: of its folder's paths, executable bits and bytes, and of the definition of its base.

    `above`: the recipes that are based on it. Raises `UsageError` if one of them is its base.
    """
    folder = folder_of(name, recipes)
    if not (folder / "Containerfile").is_file():
        known = ", ".join(names(recipes)) or "none"
        raise UsageError(f"no such toolchain image: {name}", where=str(folder), hint=f"there are: {known}")
    if name in above:
        raise UsageError(f"its base is itself: {' → '.join((*above, name))}", where=str(folder / "base.toml"))
    entries = []
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        where = path.relative_to(folder).as_posix()
        if path.is_symlink():
            entries.append([where, "link", str(path.readlink())])
        elif path.is_file():
            kind = "program" if path.stat().st_mode & 0o100 else "file"
            entries.append([where, kind, hashlib.sha256(path.read_bytes()).hexdigest()])
    return sha256({"base": base_digest(base_definition(folder), above=(*above, name)), "files": entries})


# --- the base -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BaseDefinition:
    """Content of `base.toml`: a Debian suite, or a built-in guest, or another recipe's image."""

    suite: str = ""
    variant: str = ""
    registry: str = ""
    guest: str = ""
    image: str = ""

    def __str__(self) -> str:
        if self.guest:
            return f"guest {alpine.alpine_name(GUEST_ARCH)}"
        return f"image {self.image}" if self.image else f"Debian {self.suite}, {self.variant}"


GUEST_ARCH = Arch.X86_64  # for a guest as base: the container runs its programs


def base_definition(folder: Path | None = None) -> BaseDefinition:
    """Read the base definition of a recipe: from its own `base.toml`, else from the one that all recipes share."""
    path = recipes_dir() / "base.toml"
    if folder is not None and (folder / "base.toml").is_file():
        path = folder / "base.toml"
    try:
        table = parsing.toml(path.read_text())["base"]
        if guest := table.get("guest", ""):
            if guest != alpine.ALPINE:
                raise KeyError(f"no built-in guest {guest!r}")
            return BaseDefinition(guest=guest)
        if "image" in table:
            return BaseDefinition(image=table["image"])
        return BaseDefinition(table["suite"], table["variant"], table.get("registry", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise InfraError(f"not understood: {error}", where=str(path)) from None


def base_digest(definition: BaseDefinition, *, above: tuple[str, ...] = ()) -> str:
    """Return the digest of a base definition. The mirror is left out: the image's package list records the versions.

    `above` as with `recipe_digest`.
    """
    if definition.guest:
        return sha256({"guest": alpine.alpine_name(GUEST_ARCH), "sha256": alpine.alpine_sha256(GUEST_ARCH)})
    if definition.image:
        return sha256({"image": definition.image, "recipe": recipe_digest(definition.image, above=above)})
    return sha256({"suite": definition.suite, "variant": definition.variant})


def sha256(parts: Mapping[str, canonical.JSON]) -> str:
    return canonical.digest(parts)
