"""Checks of `qcase doctor` that need the container engine: the engine itself, the toolchain images and their base, a step."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.cli.doctor_lines import PATIENCE, UNBUILT, Line, State, Subject, guarded, version_of
from qcase.config import image_lock
from qcase.guests import debian_archive
from qcase.toolchains import base, images, recipes, records
from qcase.toolchains.foreign import foreign_identity, known_foreign

if TYPE_CHECKING:
    from qcase.containers.engine import Engine


_OLDEST_ENGINE = (20, 10)


_SHOWN = 5  # packages of an image that are not as pinned


def engine_lines(subject: Subject) -> Iterator[Line]:
    lines = list(guarded("engine", _engine_lines, subject))
    if subject.needs_engine:
        yield from lines
        return
    for line in lines:
        if line.state is State.BAD:
            yield replace(line, state=State.WARNING, hint=f"no case here needs it. {line.hint}".strip())
        else:
            yield line


def _engine_lines(subject: Subject) -> Iterator[Line]:
    from qcase.containers.engine import Engine

    with Engine.connect(subject.workspace.root if subject.workspace else None) as engine:
        facts = engine.facts
        said = f"{facts.version} at {engine.socket}{', rootless' if facts.rootless else ''}"
        if version_of(facts.version) < _OLDEST_ENGINE:
            hint = "the oldest that is known to work is 20.10"
            yield Line("engine", State.WARNING, said, hint)
        elif missing := facts.missing_limits():
            yield Line("engine", State.WARNING, f"{said}; {'; '.join(missing)}")
        else:
            yield Line("engine", State.GOOD, said)
        for folder in (subject.workspace.root if subject.workspace else None, subject.store):
            if folder is not None:
                engine.host_paths.seen(folder)
        step: records.Image | None = None
        missing_images = []
        whole = True
        for name in subject.images:
            found = _image(name, engine, subject)
            if isinstance(found, Line):
                missing_images.append(name)
                yield found
            else:
                step = found
                line = _as_pinned(name, found, subject)
                whole &= line.state is State.GOOD
                yield line
        if any(subject.config.toolchain.image(name) is None for name in subject.images):
            yield from guarded("pin", partial(_pin, whole=whole and not missing_images), subject)
        if missing_images:
            yield from guarded("base", lambda _: _base_lines(engine), subject)
        if step is not None:
            yield from guarded("step", lambda _: _step(engine, step, subject), subject)


def _image(name: str, engine: Engine, subject: Subject) -> records.Image | Line:
    foreign = subject.config.toolchain.image(name)
    if foreign is not None:
        foreign_identity(foreign)
        known = engine.image_id(foreign)
        if known is None:
            return Line(f"image {name}", State.WARNING, f"{foreign} is not here yet, and is pulled when it is needed")
        return records.Image(foreign, known, known_foreign(foreign, subject.store) or foreign_identity(foreign))
    found = images.find(name, engine, subject.store, lock=subject.lock)
    if found is None:
        hint = f"`qcase images build {name}` builds it now; else the first case that needs it does, which takes minutes"
        return Line(f"image {name}", State.WARNING, UNBUILT, hint)
    return found


def _as_pinned(name: str, image: records.Image, subject: Subject) -> Line:
    """Report a present image: whether it matches the lock, and else the command that makes it match."""
    said = f"identity {image.identity[:12]}, {len(image.packages)} packages"
    lock = subject.lock
    if subject.config.toolchain.image(name) is not None:
        return Line(f"image {name}", State.GOOD, f"identity {image.identity[:12]}")
    if name not in lock.pins:
        return Line(f"image {name}", State.WARNING, f"{said}, not pinned", f"`{lock.command(name)}` pins it as it is here")
    lines = image_lock.differences(lock.pins[name], recipes.recipe_digest(name), image.packages)
    if not lines:
        return Line(f"image {name}", State.GOOD, f"{said}, as pinned")
    more = f", and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    said = f"{said}, not as {lock.path.name} pins it: {', '.join(lines[:_SHOWN])}{more}"
    return Line(f"image {name}", State.WARNING, said, _together(name, lock, subject.store))


def _together(name: str, lock: image_lock.Lock, store: Path) -> str:
    """Return the commands that make an image and its pin match."""
    here = f"`{lock.command(name)}` pins what is here"
    suite = images.debian_suite(name)
    if not suite or not lock.snapshot:
        return here
    if lock.pin(name, recipes.recipe_digest(name)) is None:
        return f"the lock was written for another recipe, by another version of qcase; {here}"
    if images.origin(name, store, lock=lock) == lock.snapshot:
        return f"it was made from the snapshot of the lock, which has other packages than the lock; {here}"
    base = debian_archive.snapshots(os.environ)
    if not base:
        return f"snapshots are switched off, by {debian_archive.SNAPSHOT_VARIABLE} or {debian_archive.MIRROR_VARIABLE}; {here}"
    if debian_archive.snapshot_trouble(base, lock.snapshot, suite):
        other = f"with an archive of snapshots that is reached from here in {debian_archive.SNAPSHOT_VARIABLE}"
        return f"{other}, `qcase images build {name}` makes the pinned one; {here}"
    return f"`qcase images build {name}` makes the pinned one; {here}"


def _pin(subject: Subject, whole: bool) -> Iterator[Line]:
    """Report the age of the pin, and whether its snapshot is reachable. `whole`: all images are here and as pinned."""
    lock = subject.lock
    where = str(lock.path) if not lock.own or subject.workspace is None else subject.workspace.relative(lock.path)
    if not lock.snapshot:
        now = image_lock.stamp(datetime.now(UTC))
        hint = f"`qcase images lock --snapshot {now}` names now" if lock.own else "take a newer qcase"
        yield Line("pin", State.WARNING, f"{where} names no snapshot of Debian's archive", hint)
        return
    days = (datetime.now(UTC) - image_lock.at(lock.snapshot)).days
    age = "of today" if days < 1 else f"{days} day{'s' if days > 1 else ''} old"
    said = f"{where}: Debian's archive of {image_lock.at(lock.snapshot):%Y-%m-%d %H:%M} UTC, {age}"
    base = debian_archive.snapshots(os.environ)
    if not base:
        yield Line("pin", State.GOOD, f"{said}; snapshots are switched off")
        return
    trouble = debian_archive.snapshot_trouble(base, lock.snapshot, recipes.base_definition().suite)
    if trouble:
        variable = debian_archive.SNAPSHOT_VARIABLE
        hint = f"images that are built here come from today's mirror; {variable} names another archive of snapshots"
        state = State.GOOD if whole else State.WARNING
        yield Line("pin", state, f"{said}; {base} does not answer: {trouble}", "" if whole else hint)
    else:
        yield Line("pin", State.GOOD, f"{said}; {base} has it")


def _base_lines(engine: Engine) -> Iterator[Line]:
    """Report whether an image could be built: from a present base, from a registry, or from a mirror."""
    if base.has_base(engine):
        yield Line("base", State.GOOD, "the base of the images is there")
        return
    definition = recipes.base_definition()
    if definition.registry:
        yield Line(
            "base", State.GOOD, f"the base of the images comes from a registry, {definition.registry}, which was not tried"
        )
        return
    if shutil.which("mmdebstrap") is None:
        yield Line(
            "base", State.BAD, "mmdebstrap is not installed, which makes the base of the images", "apt-get install mmdebstrap"
        )
        return
    if os.geteuid() != 0 and shutil.which("newuidmap") is None:
        what = "newuidmap is not installed, which mmdebstrap needs without root to make the base of the images"
        yield Line("base", State.BAD, what, "apt-get install uidmap")
        return
    main = debian_archive.host_mirrors(debian_archive.APT, os.environ).main
    if main is None:
        yield Line("mirror", State.GOOD, "the base of the images comes from mmdebstrap's own mirror, which was not tried")
        return
    where = f"{main.uri.rstrip('/')}/dists/{definition.suite}/Release"
    if trouble := debian_archive.trouble(where, PATIENCE):
        hint = "images cannot be built without it; set http_proxy if there is one"
        yield Line("mirror", State.BAD, f"{main.uri} does not answer: {trouble}", hint)
    else:
        yield Line("mirror", State.GOOD, f"{main.uri} answers")


def _step(engine: Engine, image: records.Image, subject: Subject) -> Iterator[Line]:
    """Run a step with the usual confinement: rights, mounts, limits and the clean-up behind it."""
    import tempfile

    from qcase.containers.step import Mount, Step, verdict_of

    place = subject.workspace.root if subject.workspace else Path.cwd()
    with tempfile.TemporaryDirectory(prefix=".qcase-doctor-", dir=place) as name:
        folder = Path(name)
        step = Step(
            image=image.id,
            argv=("sh", "-euc", "echo well >/qcase/build/said"),
            mounts=(Mount(folder, "/qcase/build", False),),
            timeout=60.0,
            name="doctor",
        )
        began = time.monotonic()
        result = engine.run(step)
        seconds = time.monotonic() - began
        if result.exit_status != 0:
            what, hint = verdict_of(step, result)
            yield Line("step", State.BAD, f"{what}: {result.output.strip()[-300:]}", hint)
        elif not (folder / "said").is_file():
            hint = "an engine on another machine, or in another mount namespace, cannot be used"
            yield Line("step", State.BAD, "what a step writes does not arrive here: the engine does not share our folders", hint)
        else:
            yield Line("step", State.GOOD, f"a confined step ran in {seconds:.1f} s")
