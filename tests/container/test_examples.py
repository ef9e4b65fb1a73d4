"""Every example is built twice: in two stores, in two workspaces with other paths, by two users. All bytes are the same."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from qcase.disk import image_digest
from tests.conftest import ROOT
from tests.packages import Repository
from tests.vm import workspaces
from tests.vm.test_ordinary_user import UID, as_another_user
from tests.vm.test_ordinary_user import place as place

pytestmark = [pytest.mark.container, pytest.mark.timeout(2400)]

DOWNLOADS = ("downloads", "v2/downloads")  # of packages; of crates
EXAMPLES = ROOT / "examples" / "linux"


def prepared(suite: Path, store: Path, arch: str, repository: Repository, prefix: Sequence[str] = ()) -> dict[str, Path]:
    """The images of all cases, made by the command's user."""
    env = workspaces.environment(suite.with_name(f"{suite.name}.outside"), repository.environment)
    argv = [*prefix, sys.executable, "-m", "tests.tools.prepared", str(suite), str(store), arch]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {case: Path(image) for case, _, image in (line.partition(" ") for line in done.stdout.splitlines())}


def machines_of(file: Path) -> int:
    """The number of cases that a file makes: one for each combination of the axes of its matrix."""
    matrix = tomllib.loads(file.read_text(encoding="utf-8")).get("qcase", {}).get("matrix", [])
    return math.prod(Counter(entry["axis"] for entry in matrix).values())


def copy_downloads(source: Path, target: Path) -> None:
    """What one store has downloaded, into another one that has nothing."""
    for name in DOWNLOADS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("fetch-*.lock", "*.owner"))


def overlays(store: Path) -> dict[str, str]:
    """Key and digest of every overlay."""
    found = store.glob("v2/overlays/*/*/manifest.json")
    return {manifest.parent.name: json.loads(manifest.read_bytes())["digest"] for manifest in found}


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_every_example_is_the_same_wherever_and_by_whomever_it_is_built(
    arch: str, place: Path, test_cache: Path, toolchain_rust: object, repository: Repository
) -> None:
    mine, other = place / "mine", place / "a place of another name"
    for folder in (mine, other):
        shutil.copytree(EXAMPLES, folder / "w", ignore=shutil.ignore_patterns("target"))
    store, second = (workspaces.fresh_store(folder / "store", test_cache) for folder in (mine, other))
    # Crates and packages are kept, so that they are fetched once: where the tests run again, there may be no network.
    kept = test_cache / "examples" / arch
    copy_downloads(kept, second)
    theirs = prepared(other / "w", second, arch, repository)
    if not kept.exists():
        copy_downloads(second, kept.with_name(f".{arch}.{os.getpid()}"))
        kept.with_name(f".{arch}.{os.getpid()}").rename(kept)
    copy_downloads(kept, store)
    prefix: Sequence[str] = ()
    if os.geteuid() == 0:
        (store / "memory").unlink()  # what is written there belongs to the user, too
        shutil.copytree(test_cache / "memory", store / "memory", ignore=shutil.ignore_patterns("*.lock", "*.owner", ".*"))
        (mine / "w.outside/tmp").mkdir(parents=True)
        prefix = as_another_user(place, test_cache)
        for path in (mine, *mine.rglob("*")):
            os.chown(path, UID, UID, follow_symlinks=False)
    ours = prepared(mine / "w", store, arch, repository, prefix)
    assert list(ours) == list(theirs)
    assert len(ours) == sum(map(machines_of, EXAMPLES.rglob(f"qemu-{arch}.toml")))
    assert overlays(store) == overlays(second)
    assert len(overlays(store)) > 15
    for case, image in ours.items():
        if image.parent.parent == store:  # the base itself: the case adds nothing
            continue
        assert image.parent.name == theirs[case].parent.name, case  # the key
        assert image_digest.digest(image) == image_digest.digest(theirs[case]), case
