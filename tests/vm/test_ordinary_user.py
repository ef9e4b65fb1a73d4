"""qcase as somebody who is not root and may talk to the engine: all that it makes is his, and nothing runs as anybody else.

Where the tests run as root, the program runs as another user, in a mount namespace in which its interpreter can be read: that may
lie below root's own closed home. There the user has an entry in /etc/passwd, and is a member of the group docker in /etc/group.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcase.containers.connection import socket_path
from qcase.host.crash_cleanup import remove_tree
from tests.conftest import ROOT
from tests.packages import Repository
from tests.vm import workspaces
from tests.vm.workspaces import Workspace, c_program

UID = 54321
USER = "qcase-tester"

pytestmark = [pytest.mark.vm, pytest.mark.container, pytest.mark.timeout(2400)]


def accounts(group: int, home: Path) -> dict[str, str]:
    """/etc/passwd and /etc/group with one more user, who is a member of the group of the engine's socket."""
    files = {name: Path("/etc", name).read_text() for name in ("passwd", "group")}
    files["passwd"] += f"{USER}:x:{UID}:{UID}::{home}:/bin/sh\n"
    rows = [row.split(":") for row in files["group"].splitlines()]
    if all(row[2] != str(group) for row in rows):
        rows.append(["qcase-engine", "x", str(group), ""])
    for row in rows:
        if row[2] == str(group):
            row[3] = ",".join(filter(None, (row[3], USER)))
    files["group"] = "".join(f"{':'.join(row)}\n" for row in (*rows, [USER, "x", str(UID), ""]))
    return files


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
    for name, text in accounts(group, folder / "mine").items():
        (folder / name).write_text(text)
        opened.append(f"mount --bind {shlex.quote(str(folder / name))} /etc/{name}")
    become = f'exec setpriv --reuid {UID} --regid {UID} --init-groups --no-new-privs "$@"'
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
        (store / "memory").unlink()
        shutil.copytree(test_cache / "memory", store / "memory", ignore=shutil.ignore_patterns("*.lock", "*.owner", ".*"))
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else; all these tests are run as who it is")
@pytest.mark.timeout(900)
def test_hostile_steps_as_a_user_of_the_group_docker(
    place: Path, test_cache: Path, toolchain_c: object, toolchain_rust: object
) -> None:
    """The suite of what a build leaves on purpose, with a home and a cache of one's own."""
    mine = place / "mine"
    shutil.copytree(test_cache / "images", mine / "cache/images", ignore=shutil.ignore_patterns("*.lock", "*.owner", ".*"))
    (mine / "tmp").mkdir()
    for path in (mine, *mine.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)
    given = {name: os.environ[name] for name in ("PATH", "DOCKER_HOST") if name in os.environ}
    env = {**given, "HOME": str(mine), "TMPDIR": str(mine / "tmp"), "QCASE_TEST_CACHE": str(mine / "cache")}
    who = "import os, grp, pwd; print(pwd.getpwuid(os.getuid()).pw_name, [grp.getgrgid(n).gr_mem for n in os.getgroups()])"
    prefix = as_another_user(place, mine / "cache")
    tests = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/container/test_hostile_steps.py"]
    for words in (["-c", who], [*tests, "--basetemp", str(mine / "tmp/tests")]):
        done = subprocess.run([*prefix, sys.executable, "-B", *words], cwd=ROOT, env=env, capture_output=True, text=True)
        print(done.stdout, done.stderr)
        assert done.returncode == 0
        assert USER in done.stdout or "passed" in done.stdout
    assert {path.lstat().st_uid for path in mine.rglob("*")} == {UID}
