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
from tests.conftest import ROOT
from tests.vm import workspaces
from tests.vm.workspaces import Workspace, c_program, says

UID = 54321

pytestmark = [pytest.mark.vm, pytest.mark.container]


def as_another_user(folder: Path, cache: Path) -> list[str]:
    """A command that runs another one as `UID`, in the group of the engine's socket."""
    group = Path(socket_path(os.environ)).stat().st_gid
    needed = sorted({Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT, cache.resolve()})
    closed = sorted({above for place in needed for above in place.parents if not above.stat().st_mode & 0o001})
    opened = []
    for above in closed[:1]:  # what is below it is shown in an open folder of the same name
        aside = folder / "aside"
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
    shutil.rmtree(folder, ignore_errors=True)


def test_all_that_is_made_belongs_to_who_made_it(place: Path, test_cache: Path, toolchain_rust: object) -> None:
    mine = place / "mine"
    workspace = Workspace.make(mine / "w")
    tells = 'id -u >"$QCASE_CASE_OVERLAY_DIR/uid"\n'
    group = {
        **c_program(says("from C"), "say-c", "one/c", prebuild_sh=tells),
        "two/rust/Cargo.toml": '[package]\nname = "say-rust"\nversion = "0.1.0"\nedition = "2021"\n',
        "two/rust/src/main.rs": 'fn main() { println!("from Rust"); }\n',
        "three/sh/say-sh": "#!/bin/sh\ncat /uid\n",
    }
    workspace.case("group", group, test_commands=["say-c", "say-rust", "say-sh", f"grep -qx {UID} /uid"])
    store = workspaces.fresh_store(mine / "store", test_cache)
    uid = os.geteuid()
    if uid == 0:
        # The store of the tests is root's. What is only read of it stays shared.
        for name in ("images", "memory"):
            (store / name).unlink()
            shutil.copytree(test_cache / name, store / name, ignore=shutil.ignore_patterns("*.lock", "*.owner", ".*"))
        (mine / "w.outside/tmp").mkdir(parents=True)
        for path in (mine, *mine.rglob("*")):
            os.chown(path, UID, UID, follow_symlinks=False)
        uid = UID
    ran = workspaces.run(workspace, store=store, prefix=as_another_user(place, test_cache) if os.geteuid() == 0 else [])
    assert ran.verdicts == {"group": "pass"}, ran.said
    made = [mine, *mine.rglob("*")]
    assert len(made) > 100
    assert {path.lstat().st_uid for path in made} == {uid}
