"""qcase as somebody who is not root and may talk to the engine: all that it makes is his, and nothing runs as anybody else.

Where the tests run as root, the program runs as another user, in a mount namespace in which its interpreter can be read: that may
lie below root's own closed home.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcase.containers import socket_path
from qcase.content import remove_tree
from tests.conftest import ROOT
from tests.packages import Repository
from tests.vm import workspaces
from tests.vm.workspaces import Workspace, c_program

UID = 54321

pytestmark = [pytest.mark.vm, pytest.mark.container, pytest.mark.timeout(2400)]


def as_another_user(folder: Path, cache: Path) -> list[str]:
    """A command that runs another one as `UID`, in the group of the engine's socket."""
    group = Path(socket_path(os.environ)).stat().st_gid
    needed = sorted({Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT, cache.resolve()})
    closed = sorted({above for place in needed for above in place.parents if not above.stat().st_mode & 0o001})
    opened = []
    # What is below one is shown in an open folder of the same name. Debian 13 closes people's homes, too, and not only root's.
    for number, above in enumerate(above for above in closed if not set(above.parents) & set(closed)):
        aside = folder / f"aside{number}"
        aside.mkdir()
        opened += [
            f"mount --bind {shlex.quote(str(above))} {aside}",
            f"mount -t tmpfs -o mode=755 none {shlex.quote(str(above))}",
        ]
        for place in (place for place in needed if above in place.parents):
            there = shlex.quote(str(place))
            opened += [f"mkdir -p {there}", f"mount --bind {aside}/{shlex.quote(str(place.relative_to(above)))} {there}"]
    become = f'exec setpriv --reuid {UID} --regid {UID} --groups {group} --no-new-privs "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-euc", "\n".join([*opened, become]), "sh"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that this user can enter, which the tests' own temporary folder is not."""
    folder = Path(tempfile.mkdtemp(prefix="qcase-user-"))
    folder.chmod(0o755)
    yield folder
    remove_tree(folder)  # a store's entries are read-only


def fill(root: Path) -> Workspace:
    """A group of every kind that needs a container; the C program says where and when it was built, if it can tell."""
    workspace = Workspace.make(root)
    tells = '#include <stdio.h>\nint main(void) { puts(__FILE__ " " __DATE__ " " __TIME__); return 0; }\n'
    group = {
        **c_program(tells, "say-c", "one/c", prebuild_sh='touch "$QCASE_CASE_OVERLAY_DIR/built"\n'),
        "two/rust/Cargo.toml": '[package]\nname = "say-rust"\nversion = "0.1.0"\nedition = "2021"\n',
        "two/rust/src/main.rs": 'fn main() { println!("{} {}", file!(), env!("CARGO_MANIFEST_DIR")); }\n',
        "three/sh/say-sh": "#!/bin/sh\necho from sh\n",
    }
    # Packages of both ways: in the guest, and for the compiler alone.
    group["one/c/prebuild.sh"] += "apk add tally-dev\n"
    commands = ["say-c", "say-rust", "say-sh", "greeting"]
    workspace.case("group", group, test_commands=commands, qcase={"packages": ["greeting"]})
    return workspace


def test_all_that_is_made_belongs_to_who_made_it_and_is_the_same_for_everybody(
    place: Path, test_cache: Path, toolchain_rust: object, repository: Repository
) -> None:
    mine = place / "mine"
    workspace = fill(mine / "w")
    store = workspaces.fresh_store(mine / "store", test_cache)
    uid, prefix = os.geteuid(), []
    if uid == 0:
        # The store of the tests is root's. What is only read of it stays shared.
        for name in ("images", "memory"):
            (store / name).unlink()
            shutil.copytree(test_cache / name, store / name, ignore=shutil.ignore_patterns("*.lock", "*.owner", ".*"))
        (mine / "w.outside/tmp").mkdir(parents=True)
        uid, prefix = UID, as_another_user(place, test_cache)
        for path in (mine, *mine.rglob("*")):
            os.chown(path, UID, UID, follow_symlinks=False)
    ran = workspaces.run(workspace, store=store, prefix=prefix, env=repository.environment)
    assert ran.verdicts == {"group": "pass"}, ran.said
    made = [mine, *mine.rglob("*")]
    assert len(made) > 100
    assert {path.lstat().st_uid for path in made} == {uid}

    other = fill(place / "a place of another name" / "w")
    again = workspaces.run(other, store=workspaces.fresh_store(place / "another store", test_cache), env=repository.environment)
    assert again.case("group")["cache"] == "miss"
    images = [Path(outcome.case("group")["image"]) for outcome in (ran, again)]
    assert images[0] != images[1]
    assert images[0].parent.name == images[1].parent.name  # the key
    assert images[0].read_bytes() == images[1].read_bytes()
