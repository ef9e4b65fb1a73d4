"""Commands for the machine: `doctor`, `schema`, `completion`, `cache …` and `images …`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcase.arch import DEFAULT, Arch
from qcase.cli.app import COMPLETE, BuiltArgument, app, as_pinned, cache_app, images_app
from qcase.cli.options import (
    ArchOption,
    CacheOption,
    DryRunOption,
    NamesArgument,
    WorkspaceOption,
    arch_named,
    cache_config,
    image_lock_of,
    looked_at,
    offer,
    size_named,
    store_root_of,
    workspace_around,
)
from qcase.cli.output import INTERNAL, SEVERITIES, coloured, is_narrow, reported, terminal_report, warn, wrapped
from qcase.errors import UsageError
from qcase.report import inert

if TYPE_CHECKING:
    from qcase.config.image_lock import Lock, Pin
    from qcase.events import Emit


@cache_app.command("path")
def cache_path(cache_dir: CacheOption = "") -> None:
    """Print the folder of the store."""
    with reported():
        print(store_root_of(cache_dir))


@cache_app.command("list")
def cache_list(cache_dir: CacheOption = "") -> None:
    """Show what is stored, what was not used for longest first: size on the disk, last use, the case that made it."""
    with reported():
        from qcase.store import describe

        for line in describe.listing(looked_at(cache_dir), narrow=is_narrow()):
            print(wrapped(line, " " * 35))


@cache_app.command("size")
def cache_size(cache_dir: CacheOption = "") -> None:
    """Show how much of the disk the store takes; holes do not count."""
    with reported():
        from qcase.store import describe

        for line in describe.sizes(looked_at(cache_dir)):
            print(line)


@cache_app.command("gc")
def cache_gc(
    max_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest size of the store; default: [cache] max_size, else 20 GiB.")
    ] = "",
    max_age: Annotated[str, typer.Option(metavar="AGE", help='Largest time since the last use, e.g. "30d"; default: any.')] = "",
    min_free: Annotated[
        str, typer.Option(metavar="SIZE", help="Free space to keep on its disk; default: [cache] min_free, else 1 GiB.")
    ] = "",
    dry_run: DryRunOption = False,
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
) -> None:
    """Sweep leftovers, and take away what was not used for longest until the limits are kept. Nothing that is in use."""
    with reported():
        from qcase import text
        from qcase.store import collect, describe, store

        default = cache_config(workspace)
        limits = collect.Limits(
            max_size=size_named(max_size or default.max_size, "--max-size"),
            min_free=size_named(min_free or default.min_free, "--min-free"),
            max_age=text.parse_age(max_age) if max_age else None,
        )
        done = collect.collect(store.Store(store_root_of(cache_dir)), limits, dry_run=dry_run)
        for line in describe.collected(done, dry_run=dry_run):
            print(line)


@cache_app.command("verify")
def cache_verify(
    repair: Annotated[bool, typer.Option("--repair", help="Remove broken entries.")] = False, cache_dir: CacheOption = ""
) -> None:
    """Read everything in full. Exit code 1 if something is broken and still there."""
    with reported():
        from qcase.crates import pool
        from qcase.store import collect, describe, store

        opened = store.Store(store_root_of(cache_dir)) if repair else looked_at(cache_dir)
        found = False
        for line, broken in describe.verify(opened, {collect.COMMIT: pool.commit_of}, repair=repair):
            found |= broken
            print(line)
        raise typer.Exit(int(found))


@cache_app.command("clear")
def cache_clear(
    everything: Annotated[
        bool, typer.Option("--all", help="Guests and records of toolchain images too; guests have to be fetched again.")
    ] = False,
    dry_run: DryRunOption = False,
    cache_dir: CacheOption = "",
) -> None:
    """Take away all overlays and images that are not in use."""
    with reported():
        from qcase.store import collect, describe, store

        done = collect.clear(store.Store(store_root_of(cache_dir)), everything=everything, dry_run=dry_run)
        for line in describe.collected(done, dry_run=dry_run):
            print(line)


@images_app.command("build")
def images_build(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The image, e.g. c.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Build anew, from a new base and with today's packages.")] = False,
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
) -> None:
    """Build a toolchain image, if the one that is there was not built from this recipe, or is not as pinned and can be."""
    with reported():
        from qcase.containers.engine import Engine
        from qcase.toolchains import images

        emit = terminal_report([])
        root = store_root_of(cache_dir)
        lock = image_lock_of(workspace)
        with Engine.connect() as engine:
            if fresh:
                image = images.build_anew(name, engine, root, emit, lock=lock, fresh=True)
            else:
                images.take_pinned(name, root)
                image = images.ensure(name, engine, root, emit, lock=lock)
        if said := images.departure(image, lock):
            warn(emit, said)
        print(f"{image.name}: {image.id}, identity {image.identity}, {len(image.packages)} packages")


@images_app.command("list")
def images_list(workspace: WorkspaceOption = None, cache_dir: CacheOption = "") -> None:
    """Show the toolchain images: whether they are built, and as the lock has them."""
    with reported():
        from qcase.config import image_lock
        from qcase.toolchains import images, recipes

        root = store_root_of(cache_dir)
        lock = image_lock_of(workspace)
        for name in recipes.names():
            image = images.known(name, root, lock=lock)
            if image is None:
                state = "not built"
            else:
                wanted = lock.pins.get(name)
                differs = wanted is not None and image_lock.differences(wanted, recipes.recipe_digest(name), image.packages)
                locked = "not pinned" if wanted is None else "not as pinned" if differs else "as pinned"
                state = f"{image.identity[:12]}  {len(image.packages)} packages, {locked}"
            print(f"{name:<8}  {state}")


@images_app.command("lock")
def images_lock(
    names: NamesArgument = None,
    own: Annotated[
        bool, typer.Option("--own", help="Write the workspace's own qcase-images.lock, also if it has none yet.")
    ] = False,
    snapshot: Annotated[
        str,
        typer.Option(
            "--snapshot",
            metavar="TIME",
            help="Pin what Debian's archive had at this time, e.g. 20261122T120000Z; images are built from there.",
        ),
    ] = "",
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
) -> None:
    """Pin toolchain images as they are; those that are not there are built.

    Written is the workspace's own qcase-images.lock if it has one, else the lock that qcase ships.
    """
    with reported():
        from datetime import UTC, datetime

        from qcase.config import image_lock
        from qcase.toolchains import images, recipes

        if snapshot and names:
            raise UsageError("a lock has one snapshot, for all images", where="--snapshot", hint="leave out the names")
        if snapshot:
            try:
                image_lock.at(snapshot)
            except ValueError as error:
                raise UsageError(str(error), where="--snapshot") from None
        before = _lock_to_write(workspace, own=own)
        emit = terminal_report([])
        root = store_root_of(cache_dir)
        after = replace(before, pins={**before.pins, **_pins_now(names or recipes.names(), before, snapshot, root, emit)})
        time, doubtful = (snapshot, []) if snapshot else images.time_of(before, after, root)
        after = replace(after, snapshot=time)
        print(f"written: {image_lock.write(after)}")
        if doubtful:
            hint = f"`qcase images lock --snapshot {time}` makes all images from there"
            warn(emit, f"Debian's archive of {time} may have other packages than are pinned of {', '.join(doubtful)}; {hint}")
        if after.snapshot:
            print(f"snapshot: {after.snapshot}")
        elif any(images.debian_suite(name) for name in after.pins if name in recipes.names()):
            hint = f"`qcase images lock --snapshot {image_lock.stamp(datetime.now(UTC))}` names now"
            warn(emit, f"the lock names no time of Debian's archive, for the mirror does not say its own; {hint}")


def _pins_now(names: Iterable[str], before: Lock, snapshot: str, root: Path, emit: Emit) -> dict[str, Pin]:
    """Return the pins of toolchain images as they are, and print the differences. A missing image is built.

    With `snapshot`, each image is the one with the packages of that time.
    """
    from qcase.config import image_lock
    from qcase.containers.engine import Engine
    from qcase.toolchains import images, records

    found = {}
    with Engine.connect() as engine:
        for name in names:
            if snapshot:
                image = images.build_from(name, snapshot, engine, root, emit)
            else:
                there = images.find(name, engine, root, lock=before)
                image = there if there is not None else images.ensure(name, engine, root, emit, lock=before)
            old = before.pins.get(name)
            found[name] = records.pin(image)
            changes = image_lock.differences(old, found[name].recipe, image.packages) if old is not None else []
            print(f"{name}: {f'{len(changes)} changes' if changes else 'as it was' if old is not None else 'new'}")
            for line in changes:
                print(f"  {line}")
    return found


def _lock_to_write(workspace: Path | None, *, own: bool) -> Lock:
    """Return the lock that `qcase images lock` writes. Raises `UsageError` for the lock of an installed qcase."""
    from qcase.config import image_lock
    from qcase.toolchains import recipes, records

    opened = workspace_around(workspace)
    if own and opened is None:
        raise UsageError(
            "there is no workspace here", where="--own", hint="go to the folder of qcase.toml, or name it by --workspace"
        )
    if opened is not None and (own or os.path.lexists(opened.root / image_lock.FILE)):
        return image_lock.read(opened.root / image_lock.FILE, own=True)
    if recipes.recipes_dir().name == "_images":
        hint = f"`qcase images lock --own` writes {image_lock.FILE} beside qcase.toml"
        raise UsageError("the lock that qcase ships is part of its installation", where=str(recipes.recipes_dir()), hint=hint)
    return records.shipped_lock()


@images_app.command("verify")
def images_verify(names: NamesArgument = None, workspace: WorkspaceOption = None, cache_dir: CacheOption = "") -> None:
    """Read back what is installed in toolchain images, and compare it with the lock. Exit code 1 where it differs."""
    with reported():
        from qcase.config import image_lock
        from qcase.containers.engine import Engine
        from qcase.toolchains import images, recipes

        lock = image_lock_of(workspace)
        good = True
        with Engine.connect() as engine:
            for name in names or recipes.names():
                image = images.reread(name, engine, store_root_of(cache_dir), lock=lock)
                wanted = lock.pins.get(name)
                if wanted is None:
                    lines = ["is not pinned"]
                elif image is None:
                    lines = ["is not built from the recipe as it is now"]
                else:
                    lines = image_lock.differences(wanted, recipes.recipe_digest(name), image.packages)
                print(f"{name}: {'not as pinned' if lines else 'as pinned'}")
                for line in lines:
                    print(f"  {line}")
                good &= not lines
        raise typer.Exit(int(not good))


def _built(names: Sequence[str] | None, cache: Path) -> list[str]:
    """Return the named images, else all that are built. Raises `UsageError` if none is."""
    from qcase.toolchains import images, recipes

    chosen = list(names or [name for name in recipes.names() if images.known_identity(name, cache) is not None])
    if not chosen:
        raise UsageError("no toolchain image is built", hint="`qcase images build c` builds one")
    return chosen


@images_app.command("save")
def images_save(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A new folder, or a file that ends in .tar.")],
    names: BuiltArgument = None,
    cache_dir: CacheOption = "",
) -> None:
    """Write toolchain images as an OCI image layout, which `qcase images load` takes in elsewhere."""
    with reported():
        from qcase.containers.engine import Engine
        from qcase.toolchains import travel

        root = store_root_of(cache_dir)
        with Engine.connect() as engine:
            for one in travel.save(path, _built(names, root), engine, root, terminal_report([]), lock=image_lock_of(None)):
                print(f"{one.image.name}: {one.digest}, identity {one.image.identity}")
        print(f"written: {path}")


@images_app.command("load")
def images_load(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file or folder that `qcase images save images.tar` wrote.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="The images; default: all in it.")] = None,
    cache_dir: CacheOption = "",
) -> None:
    """Take toolchain images in that another machine saved. All of them is checked; they count as if they were built here."""
    with reported():
        from qcase.containers.engine import Engine
        from qcase.toolchains import travel

        with Engine.connect() as engine:
            as_pinned(travel.load(path, names or (), engine, store_root_of(cache_dir), terminal_report([])))


@images_app.command("push")
def images_push(
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="A registry, and the repository above the images, e.g. registry.example/team.")
    ],
    names: BuiltArgument = None,
    cache_dir: CacheOption = "",
) -> None:
    """Bring toolchain images to a container registry, and print how `qcase images pull` and qcase.toml name them."""
    with reported():
        from qcase.containers.engine import Engine
        from qcase.toolchains import travel

        root = store_root_of(cache_dir)
        with Engine.connect() as engine:
            for one in travel.push(place, _built(names, root), engine, root, terminal_report([]), lock=image_lock_of(None)):
                print(f"{one.image.name}: {one.reference}, identity {one.image.identity}, {one.sent / 1e6:.1f} MB sent")


@images_app.command("pull")
def images_pull(
    references: Annotated[
        list[str], typer.Argument(metavar="REFERENCE...", help="<registry>/<repository>@sha256:<digest>, as push printed it.")
    ],
    cache_dir: CacheOption = "",
) -> None:
    """Take toolchain images in from a container registry. All of them is checked; they count as if they were built here."""
    with reported():
        from qcase.containers.engine import Engine
        from qcase.toolchains import travel

        with Engine.connect() as engine:
            as_pinned(travel.pull(references, engine, store_root_of(cache_dir), terminal_report([])))


@app.command("doctor")
def doctor_command(
    arch: ArchOption = DEFAULT.value,
    workspace: WorkspaceOption = None,
    cache_dir: CacheOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Look at this machine: engine, QEMU, disk, guests, images, store. Exit code 0 only if `qcase run` would work.

    Nothing is fetched, built or cleared away.
    """
    with reported():
        import json

        from qcase.cli import doctor
        from qcase.cli.doctor_lines import State

        known = arch_named(arch)
        lines = []
        width = max(len(f"qemu {one}") for one in Arch)
        for line in doctor.examine(workspace, known, store_root_of(cache_dir)):
            lines.append(line)
            if as_json:
                continue
            narrow = is_narrow()
            head = f"{line.state:<8} {line.what}: " if narrow else f"{line.state:<8} {line.what:<{width}}  "
            indent = " " * (9 if narrow else len(head))
            shown = wrapped(f"{head}{line.says}", indent)
            print(shown.replace(line.state, coloured(line.state, SEVERITIES[line.state.value]), 1))
            if line.hint:
                print(wrapped(f"{indent}hint: {line.hint}", f"{indent}      "))
            sys.stdout.flush()
        works = doctor.works(lines)
        if as_json:
            print(inert.json(json.dumps(doctor.document(lines, known), indent=1)))
        else:
            bad = dict.fromkeys(line.what for line in lines if line.state is State.BAD)
            print(
                f"qcase run --arch {known} would work" if works else f"qcase run --arch {known} would not work: {', '.join(bad)}"
            )
        raise typer.Exit(0 if works else INTERNAL)


@app.command("schema")
def schema_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            autocompletion=offer("qcase", "qemu", "results", "events"),
            help="qcase: qcase.toml; qemu: qemu-<arch>.toml; results, events: the files of --json and --events.",
        ),
    ],
    as_toml: Annotated[bool, typer.Option("--toml", help="All keys with their defaults and meanings, as TOML.")] = False,
) -> None:
    """Print the JSON Schema of a configuration file, for editors that complete and check it, or of a report."""
    with reported():
        from qcase.config import schema
        from qcase.report import results

        if name in results.SCHEMAS:
            if as_toml:
                raise UsageError(f"{name} are JSON, and no file that is written by hand", where="--toml", hint="leave out --toml")
            print(results.json_schema(name), end="")
            return
        print(schema.toml(name) if as_toml else schema.json_schema(name), end="")


@app.command("completion")
def completion_command(
    shell: Annotated[
        str, typer.Argument(metavar="SHELL", autocompletion=offer("bash", "zsh", "fish"), help="bash, zsh or fish.")
    ],
) -> None:
    """Print the script with which a shell completes commands, options, and names of cases, groups and tags."""
    with reported():
        from typer.completion import get_completion_script  # type: ignore[attr-defined]

        if shell not in ("bash", "zsh", "fish"):
            raise UsageError(f"there is no completion for {shell!r}", hint="there is one for bash, zsh and fish")
        print(get_completion_script(prog_name="qcase", complete_var=COMPLETE, shell=shell))
