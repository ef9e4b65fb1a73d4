"""Contents of a built toolchain image: its packages are read back and recorded under its identity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.config.image_lock import LOCK_FORMAT, identity
from qcase.errors import InfraError
from qcase.toolchains.records import Image, scratch_folder, short_digest, write_record

if TYPE_CHECKING:
    from qcase.containers.engine import Engine


def record_name(name: str, identity: str) -> str:
    """Return the record name of an image by its identity. The record under the image's name alone is the latest."""
    return f"{name}.{identity[:16]}"


def tag_of(name: str, recipe: str) -> str:
    """Return the engine's tag for an image of a recipe, or of an identity."""
    return f"qcase/{name}:{recipe[:12]}"


def take_in(
    name: str,
    engine: Engine,
    cache: Path,
    recipe: str,
    image_id: str,
    notes: Mapping[str, object] | None = None,
    *,
    expected: str = "",
) -> Image:
    """Read back the packages of an image, write its records, and tag it so that other stores find it as pinned.

    Raises `InfraError` if its identity is not the expected one.
    """
    from qcase.toolchains.base import SNAPSHOT_LABEL

    packages = installed_packages(engine, cache, image_id)
    image = Image(name, image_id, identity(recipe, packages), packages)
    if expected and image.identity != expected:
        raise InfraError(f"it says that its identity is {expected[:12]}, and has the packages of {image.identity[:12]}")
    with engine.faults(f"looking at the image {name}"):
        labels = engine.api.inspect_image(image_id)["Config"].get("Labels") or {}  # type: ignore[no-untyped-call]
        repository, _, tag = tag_of(name, image.identity).partition(":")
        engine.api.tag(image_id, repository, tag)
    write_record(cache, short_digest(image_id), {"format": LOCK_FORMAT, "identity": image.identity, "packages": list(packages)})
    record = {"format": LOCK_FORMAT, "recipe": recipe, "image": image_id, "identity": image.identity}
    record |= {"snapshot": labels.get(SNAPSHOT_LABEL, ""), **(notes or {})}
    write_record(cache, record_name(name, image.identity), record)
    write_record(cache, name, record)
    return image


_LIST_PACKAGES = """
if [ -f /opt/qcase/packages.txt ]; then
    cat /opt/qcase/packages.txt
else
    dpkg-query -W -f '${Package} ${Architecture} ${Version}\\n'
fi
"""


def installed_packages(engine: Engine, cache: Path, image_id: str) -> tuple[str, ...]:
    from qcase.containers.step import Step

    with scratch_folder(cache) as scratch:
        log = scratch / "packages"
        step = Step(image=image_id, argv=("sh", "-euc", _LIST_PACKAGES), timeout=120, name="list the packages", log=log)
        result = engine.run(step)
        if result.exit_status != 0 or result.timed_out:
            raise InfraError(f"its packages cannot be listed\n{result.output}".strip(), where=image_id)
        return tuple(sorted(line for line in log.read_text().splitlines() if line.strip()))
