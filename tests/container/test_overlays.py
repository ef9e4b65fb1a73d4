"""What a case brings arrives in the guest as it is, and the same sources give the same image everywhere.

The base is a small image of our own, so that an overlay can be larger than its free space: Alpine's busybox, its loader in
`/usr/lib`, and `/lib` → `usr/lib`.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from qcase.disk.ext4 import Ext4Image
from qcase.guests import guest
from qcase.host import process
from tests.processes.test_ext4 import SBIN, mkfs
from tests.vm import workspaces
from tests.vm.workspaces import Outcome, Workspace, c_program, run, says

pytestmark = [pytest.mark.container, pytest.mark.vm]

MIB = 1 << 20
BASE_SIZE = 16 * MIB
LARGE = 24 * MIB
CMAKE = """\
    cmake_minimum_required(VERSION 3.18)
    project(special NONE)
    install(CODE "execute_process(COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/fill.sh COMMAND_ERROR_IS_FATAL ANY)")
    """
FILL = """\
    set -eu
    cd "$DESTDIR"
    mkdir -p usr/bin lib opt/empty "opt/a folder"
    install -m 755 /qcase/src/c/check.sh usr/bin/check
    echo lib >lib/from-lib.txt
    echo spaced >"opt/a folder/a file"
    chmod 640 "opt/a folder/a file"
    echo 'exec id -u' >usr/bin/raised
    chmod 4755 usr/bin/raised
    ln -s "a folder/a file" opt/link
    ln -s nowhere/at/all opt/dangling
    ln -s /usr/bin opt/absolute
    echo one >opt/first
    ln opt/first opt/second
    ln opt/first usr/bin/third
    seq 1 4000000 | head -c SIZE >opt/large
    """.replace("SIZE", str(LARGE))
CHECK = """\
    #!/bin/sh
    set -eu
    cd /opt
    stat -c '%n|%F|%a|%u:%g|%s' 'a folder/a file' empty /usr/bin/raised large /usr/lib/from-lib.txt /lib
    for link in link dangling absolute /lib; do
        echo "$link -> $(readlink $link)"
    done
    cat link /lib/from-lib.txt
    sha256sum large
    ls absolute/check
    stat -c '%h|%s|%n' first second /usr/bin/third
    [ first -ef second ] && [ first -ef /usr/bin/third ] && echo "one file"
    echo "all of it, $((6 * 7))"
    """


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, test_cache: Path) -> Path:
    workspaces.provide(test_cache)
    alpine = guest.alpine_guest(Arch.AARCH64, test_cache, emit=lambda _: None)
    folder = tmp_path_factory.mktemp("base")
    root = folder / "root"
    for name in ("bin", "sbin", "etc", "usr/bin", "usr/lib", "proc", "sys", "dev", "run", "tmp", "root", "opt"):
        (root / name).mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    with Ext4Image.open(alpine.rootfs) as image:
        for source, target in (("/bin/busybox", "bin/busybox"), ("/lib/ld-musl-aarch64.so.1", "usr/lib/ld-musl-aarch64.so.1")):
            node = image.lookup(source)
            assert node is not None
            with (root / target).open("wb") as file:
                image.copy_out(node, file)
            (root / target).chmod(0o755)
    for applet in ("sh", "stat", "readlink", "cat", "sha256sum", "ls", "id"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "sbin" / "init").symlink_to("/bin/busybox")
    return mkfs(folder / "base.img", BASE_SIZE, root, "-t", "ext4")


def workspace(root: Path, base: Path) -> Workspace:
    return Workspace.make(root, f'[guest.aarch64]\nrootfs = "{base}"\n')


def special(made: Workspace, name: str, fill: str, **keys: Any) -> None:
    files = {"c/CMakeLists.txt": CMAKE, "c/fill.sh": fill, "c/check.sh": CHECK}
    made.case(name, files, **{"shell_init_cmd": "check", "success_regex": ["^all of it, 42$"], **keys})


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, test_cache: Path, base: Path) -> tuple[Workspace, Outcome]:
    folder = tmp_path_factory.mktemp("overlays")
    made = workspace(folder / "w", base)
    special(made, "all", FILL)
    special(made, "newline", 'printf x >"$DESTDIR/a\nb"\n')
    special(made, "quote", 'mkdir -p $DESTDIR/opt\nprintf x >"$DESTDIR/opt/say \\"hi\\""\n')
    before = hashlib.sha256(base.read_bytes()).hexdigest()
    outcome = run(made, store=workspaces.fresh_store(folder / "store", test_cache))
    assert hashlib.sha256(base.read_bytes()).hexdigest() == before
    return made, outcome


def large_digest() -> str:
    text = "".join(f"{n}\n" for n in range(1, 4_000_001)).encode()[:LARGE]
    assert len(text) == LARGE
    return hashlib.sha256(text).hexdigest()


def test_everything_arrives_as_it_is(outcome: tuple[Workspace, Outcome]) -> None:
    made, ran = outcome
    case = ran.case("all")
    assert case["verdict"] == "pass", ran.said
    said = (made.root / case["console_log"]).read_text().replace("\r", "")
    lines = said[said.index("check\n") :].splitlines()[1:]
    assert lines[:18] == [
        "a folder/a file|regular file|640|0:0|7",
        "empty|directory|755|0:0|" + lines[1].rpartition("|")[2],
        "/usr/bin/raised|regular file|4755|0:0|11",
        f"large|regular file|644|0:0|{LARGE}",
        "/usr/lib/from-lib.txt|regular file|644|0:0|4",
        f"/lib|symbolic link|777|{os.getuid()}:{os.getgid()}|7",  # the base's, which mkfs made of a folder of ours
        "link -> a folder/a file",
        "dangling -> nowhere/at/all",
        "absolute -> /usr/bin",
        "/lib -> usr/lib",
        "spaced",
        "lib",
        f"{large_digest()}  large",
        "absolute/check",
        *("3|4|first", "3|4|second", "3|4|/usr/bin/third", "one file"),
    ]


def test_the_image_grew_and_is_clean(outcome: tuple[Workspace, Outcome], base: Path) -> None:
    image = Path(outcome[1].case("all")["image"])
    assert BASE_SIZE < LARGE < image.stat().st_size
    assert base.stat().st_size == BASE_SIZE
    done = process.run(["e2fsck", "-fn", str(image)], env=SBIN, check=False)
    assert done.returncode == 0, done.output


@pytest.mark.parametrize(("name", "shown"), [("newline", r"'a\nb'"), ("quote", "'opt/say \"hi\"'")])
def test_a_name_that_debugfs_cannot_take_is_refused_by_name(name: str, shown: str, outcome: tuple[Workspace, Outcome]) -> None:
    case = outcome[1].case(name)
    assert case["verdict"] == "build-error"
    assert shown in case["reason"]
    assert outcome[1].exit_code == 1


def test_the_same_sources_give_the_same_image_everywhere(tmp_path: Path, test_cache: Path, base: Path) -> None:
    """Another path, another store, another base of the same bytes, another umask, other times and modes of the sources."""
    program = 'puts(__FILE__); puts(__DATE__ " " __TIME__); puts("hello");'
    digests: list[dict[str, str]] = []
    for number, place in enumerate(("w", "another place/of a longer name/w")):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        own = tmp_path / f"base-{number}.img"
        own.write_bytes(base.read_bytes())
        made = workspace(tmp_path / place, own)
        source = f"#include <stdio.h>\nint main(void) {{ {program} return 0; }}\n"
        files = c_program(source, prebuild_sh='pwd >here; cat "$QCASE_CASE_C_DIR/here"\n')
        files["c/CMakeLists.txt"] += "install(FILES here DESTINATION usr/share/prog)\n"
        made.case("program", files, shell_init_cmd="prog", success_regex=["^hello$"])
        group = {**c_program(says("one"), "one", "one/c"), **c_program(says("two"), "two", "two/c")}
        made.case("group", group, test_commands=["one", "two"])
        if number:
            for path in made.root.rglob("*"):
                os.utime(path, (1, 1))
                if path.is_file():
                    path.chmod(0o600)
        store = workspaces.fresh_store(tmp_path / f"store-{number}", test_cache)
        ran = run(made, store=store, prefix=["sh", "-c", 'umask "$0"; exec "$@"', "077" if number else "022"])
        assert ran.verdicts == {"group": "pass", "program": "pass"}, ran.said
        assert {ran.case(name)["cache"] for name in ("group", "program")} == {"miss"}
        images = {name: Path(ran.case(name)["image"]) for name in ("group", "program")}
        assert all(image.is_relative_to(store) for image in images.values())
        digests.append({name: hashlib.sha256(image.read_bytes()).hexdigest() for name, image in images.items()})
        # The key is the same as well: nothing of the place is in it.
        digests[-1] |= {f"key of {name}": image.parent.name for name, image in images.items()}
        log = (made.root / ran.case("program")["console_log"]).read_text()
        assert re.search(r"(?m)^/qcase/src/c/main\.c\r*$", log)
    assert digests[0] == digests[1]
