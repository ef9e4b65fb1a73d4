"""Packages in containers and in guests: asked for in three ways, pinned, without a network, and what goes wrong."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.containers.engine import Engine
from qcase.containers.step import Mount, Step
from qcase.host import crash_cleanup
from qcase.toolchains import images
from tests import packages
from tests.packages import Repository, older
from tests.vm import workspaces
from tests.vm.workspaces import QCASE, Workspace, c_program, environment, run

# The first test waits for the repository, in which a Python is compiled twice where it is not there yet.
pytestmark = [pytest.mark.container, pytest.mark.vm, pytest.mark.timeout(2400)]

TALLY = """\
    cmake_minimum_required(VERSION 3.20)
    project(count C)
    find_package(PkgConfig REQUIRED)
    pkg_check_modules(TALLY REQUIRED IMPORTED_TARGET tally)
    add_executable(count main.c)
    target_link_libraries(count PRIVATE PkgConfig::TALLY)
    install(TARGETS count RUNTIME DESTINATION usr/bin)
    """
COUNT = '#include <stdio.h>\\n#include <tally.h>\\nint main(void) { printf("count %d\\\\n", tally_add(3) + tally_add(4)); }\\n'
# What a script does with apk: asks twice, looks, meets what is not there, and has no network while it does.
PREBUILD = """\
    apk update
    apk add --no-cache --virtual .tools tally-dev
    apk info -e tally
    test -f "$QCASE_STAGING_ROOT/usr/include/tally.h"
    if apk add no-such-package; then exit 1; fi
    test "$(cat /sys/class/net/*/address 2>/dev/null | sort -u)" = 00:00:00:00:00:00
    """
PYTHON = """\
    #!/usr/bin/env python3
    import greeting, os, subprocess
    assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
    print(greeting.WORDS, os.uname().machine)
    """


@pytest.fixture
def own(repository: Repository, tmp_path: Path) -> Repository:
    """A copy of the repository, to break."""
    folder = tmp_path / "repository"
    shutil.copytree(repository.folder, folder)
    return replace(repository, folder=folder, key=folder / repository.key.name)


@functools.cache
def small(root: Path) -> Workspace:
    """A workspace with one case that needs a package without anything else: the cheapest there is."""
    made = Workspace.make(root)
    made.case(
        "chain", shell_init_cmd="greeting", success_regex=["^loud: hello from a package$"], qcase={"packages": ["greeting"]}
    )
    return made


def downloads(store: Path) -> list[Path]:
    return sorted((store / "downloads" / "packages").glob("*.apk"))


def lock(made: Workspace, store: Path, own: Repository, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [str(QCASE), "lock", "--workspace", str(made.root), "--cache-dir", str(store), "--arch", "aarch64", *arguments]
    beside = made.root.parent / "lock"
    return subprocess.run(
        argv, env=environment(beside, own.environment), capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def world(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory, test_cache: Path
) -> Iterator[tuple[Workspace, Path, workspaces.Outcome]]:
    """Cases of every kind that have packages, run once."""
    folder = tmp_path_factory.mktemp("packages")
    made = Workspace.make(folder / "w", repository.config)
    made.case(
        "count", c_program(COUNT.encode().decode("unicode_escape")) | {"c/CMakeLists.txt": TALLY, "c/prebuild.sh": PREBUILD},
        shell_init_cmd="count", success_regex=["^count 10$"],
    )  # fmt: skip
    made.case(
        "module", {"python/hello.py": PYTHON}, shell_init_cmd="hello.py",
        success_regex=["^hello from a module aarch64$"], qcase={"packages": ["py3-greeting"]}, timeout=240,
    )  # fmt: skip
    made.case(
        "chain", {"sh/say": "exec greeting\n"}, shell_init_cmd="sh /usr/bin/say",
        success_regex=["^loud: hello from a package$"], qcase={"packages": ["greeting"]},
    )  # fmt: skip
    store = workspaces.fresh_store(folder / "store", test_cache)
    yield made, store, run(made, store=store)
    crash_cleanup.remove_tree(store / "v2")


def test_packages_arrive_in_the_guest(world: tuple[Workspace, Path, workspaces.Outcome]) -> None:
    _, store, outcome = world
    assert outcome.verdicts == {"chain": "pass", "count": "pass", "module": "pass"}, outcome.said
    assert len(downloads(store)) == 7  # tally, tally-dev, python3, py3-greeting, and the chain of three


def test_only_what_a_program_needs_comes_along(world: tuple[Workspace, Path, workspaces.Outcome]) -> None:
    overlays = [path for path in (world[1] / "v2" / "overlays").glob("*/*/content") if (path / "usr/bin/count").is_file()]
    assert len(overlays) == 1
    assert sorted(str(path.relative_to(overlays[0])) for path in overlays[0].rglob("*") if path.is_file()) == [
        "usr/bin/count",
        "usr/lib/libtally.so.1",
    ]


def test_an_overlay_holds_what_packages_brought_and_nothing_else(world: tuple[Workspace, Path, workspaces.Outcome]) -> None:
    overlays = [path for path in (world[1] / "v2" / "overlays").glob("*/*/content") if (path / "usr/bin/greeting").is_file()]
    assert [sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()) for path in overlays] == [
        ["usr/bin/greeting", "usr/share/greeting/voice", "usr/share/greeting/words"]
    ]


def test_everything_is_built_again_from_downloads(
    world: tuple[Workspace, Path, workspaces.Outcome], repository: Repository, tmp_path: Path
) -> None:
    """No overlay, no image, and a repository without packages."""
    made, store, _ = world
    empty = replace(repository, folder=tmp_path / "repository", key=tmp_path / "repository" / repository.key.name)
    shutil.copytree(repository.folder, empty.folder, ignore=shutil.ignore_patterns("*.apk"))
    crash_cleanup.remove_tree(store / "v2")
    again = run(made, "--offline", store=store, env=empty.environment)
    assert set(again.verdicts.values()) == {"pass"}, again.said
    assert {again.case(name)["cache"] for name in again.verdicts} == {"miss"}
    assert "fetching" not in again.said


def test_offline_before_anything_was_fetched(own: Repository, tmp_path: Path, test_cache: Path) -> None:
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    outcome = run(small(tmp_path / "w"), "--offline", store=store, env=own.environment)
    assert outcome.exit_code == 3
    assert "the packages greeting have not been downloaded, and fetching is switched off" in outcome.case("chain")["reason"]
    assert downloads(store) == []


def test_a_repository_that_does_not_answer(tmp_path: Path, own: Repository, test_cache: Path) -> None:
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    dead = {**own.environment, "QCASE_PACKAGE_REPOSITORIES": "http://127.0.0.1:1/main"}
    outcome = run(small(tmp_path / "w"), store=store, env=dead)
    assert outcome.exit_code == 3
    assert re.search("http://127.0.0.1:1/main/.*: the repository cannot be reached: ", outcome.case("chain")["reason"])
    assert downloads(store) == []


def test_an_index_that_nobody_trusted_has_signed(tmp_path: Path, own: Repository, test_cache: Path) -> None:
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    outcome = run(small(tmp_path / "w"), store=store, env={"QCASE_PACKAGE_REPOSITORIES": str(own.folder)})  # Alpine's keys
    assert outcome.exit_code == 3
    assert "is not signed by a key that is trusted" in outcome.case("chain")["reason"]
    assert downloads(store) == []


def test_there_is_no_such_package(tmp_path: Path, own: Repository, test_cache: Path) -> None:
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    made = Workspace.make(tmp_path / "w")
    made.case("none", shell_init_cmd="true", success_regex=["x"], qcase={"packages": ["no-such-package"]})
    outcome = run(made, store=store, env=own.environment)
    assert outcome.verdicts == {"none": "build-error"}
    assert "no-such-package (no such package)" in outcome.case("none")["reason"]


def test_a_lock_pins_and_what_differs_is_refused(tmp_path: Path, own: Repository, test_cache: Path) -> None:
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    made = small(tmp_path / "w")
    done = lock(made, store, own)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "aarch64: greeting-words 1.1-r0 is new" in done.stdout
    path = made.root / "qcase.lock"
    text = path.read_text()
    assert text.count("sha256") == 3
    assert lock(made, store, own).returncode == 0
    assert path.read_text() == text

    # What the lock names is there, so the repository is not even asked.
    kept = own.folder.rename(tmp_path / "away")
    own.folder.mkdir()
    outcome = run(made, store=store, env={**own.environment, "QCASE_PACKAGE_KEYS": str(kept / own.key.name)})
    assert outcome.verdicts == {"chain": "pass"}, outcome.said
    own.folder.rmdir()
    kept.rename(own.folder)

    # Another sha256 than the repository's file has.
    empty = workspaces.fresh_store(tmp_path / "empty", test_cache)
    wrong = "0" * 64
    first = re.findall('sha256 = "(.*)"', text)[0]
    path.write_text(text.replace(first, wrong))
    reason = run(made, store=empty, env=own.environment).case("chain")["reason"]
    assert f"greeting-1.2-r0 has the sha256 {first}, and qcase.lock says {wrong}" in reason
    assert downloads(empty) == []

    # A package that is gone.
    path.write_text(text.replace("1.1-r0", "1.0-r9"))
    reason = run(made, store=empty, env=own.environment).case("chain")["reason"]
    assert "no repository has greeting-words-1.0-r9 any more, as qcase.lock wants it" in reason
    assert downloads(empty) == []

    # A case that is not in it.
    path.write_text(text.replace("normal/chain", "normal/other"))
    outcome = run(made, store=empty, env=own.environment)
    assert outcome.exit_code == 2
    assert "it has no packages for the case normal/chain on aarch64" in outcome.case("chain")["reason"]


def test_a_package_that_is_not_what_the_index_says(tmp_path: Path, own: Repository, test_cache: Path) -> None:
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    folder = own.folder / Arch.AARCH64
    shutil.copyfile(folder / "greeting-voice-1.0-r0.apk", folder / "greeting-words-1.1-r0.apk")
    outcome = run(small(tmp_path / "w"), store=store, env=own.environment)
    assert outcome.exit_code == 3
    assert "greeting-words-1.1-r0" in outcome.case("chain")["reason"]
    assert downloads(store) == []


def test_a_hook_prepares_the_staging_root(tmp_path: Path, own: Repository, test_cache: Path) -> None:
    """It names the repository and its key, as a suite does that has mirrors to choose from."""
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    made = Workspace.make(
        tmp_path / "w",
        '[hooks]\nprepare_staging_root = "staging.sh"\n[hooks.guest_package_env]\nREGION = "here"\n',
    )
    (made.root / "staging.sh").write_text('test "$REGION" = here\ntest "$PWD" = /qcase/staging\necho hooked >etc/hooked\n')
    files = c_program(
        "int main(void) { return 0; }\n", prebuild_sh='grep hooked "$QCASE_STAGING_ROOT/etc/hooked"\necho $REGION\n'
    )
    made.case("hook", files, shell_init_cmd="prog && echo ran", success_regex=["^ran$"])
    outcome = run(made, store=store, env=own.environment)
    assert outcome.verdicts == {"hook": "pass"}, outcome.said
    (made.root / "staging.sh").write_text("exit 4\n")
    outcome = run(made, store=store, env=own.environment)
    assert outcome.verdicts == {"hook": "build-error"}
    assert "prepare_staging_root ended with status 4" in outcome.case("hook")["reason"]


def test_setuid_programs_of_packages_arrive_and_attributes_are_refused_by_name(
    tmp_path: Path, own: Repository, shared_engine: Engine, test_cache: Path
) -> None:
    alpine = images.ensure("alpine", shared_engine, test_cache)
    work = tmp_path / "work"
    for name in ("raised", "marked"):
        program = work / name / "usr/bin" / name
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o4755 if name == "raised" else 0o755)
    os.setxattr(work / "marked/usr/bin/marked", "user.mine", b"x")
    shutil.copyfile(own.private, work / "key.rsa")
    shutil.copytree(own.folder / Arch.AARCH64, work / "index")
    pack = """
        for name in raised marked; do
            file=index/$name-1.0-r0.apk
            apk mkpkg -I name:$name -I version:1.0-r0 -I arch:aarch64 -I license:none -I description:x -F $name -o $file
            apk adbsign --sign-key key.rsa --allow-untrusted $file
        done
        apk mkndx --quiet --sign-key key.rsa --allow-untrusted -o index/APKINDEX.tar.gz index/*.apk
        """
    mounts = (Mount(work, "/qcase/build", False),)
    step = Step(image=alpine.id, argv=("sh", "-euc", pack), mounts=mounts, workdir="/qcase/build", timeout=60, name="pack")
    shared_engine.check(step)
    shutil.copytree(work / "index", own.folder / Arch.AARCH64, dirs_exist_ok=True)
    made = Workspace.make(tmp_path / "w", own.config)
    command = "stat -c mode=%a /usr/bin/raised"
    made.case("raised", shell_init_cmd=command, success_regex=["^mode=4755$"], qcase={"packages": ["raised"]})
    made.case("marked", shell_init_cmd="true", success_regex=["^never$"], qcase={"packages": ["marked"]})
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    outcome = run(made, store=store)
    assert outcome.verdicts == {"raised": "pass", "marked": "build-error"}, outcome.said
    assert "usr/bin/marked has an extended attribute in its package" in outcome.case("marked")["reason"]
    assert not [path for path in (store / "v2").rglob("*") if path.lstat().st_mode & 0o6000]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_mirror_with_packages_of_the_older_format(
    tmp_path: Path, repository: Repository, shared_engine: Engine, test_cache: Path
) -> None:
    """By HTTP, from this machine as containers see it; the mirror is away when everything is built again."""
    compiler = images.ensure("packages", shared_engine, test_cache, recipes=packages.HERE / "images")
    alpine = images.ensure("alpine", shared_engine, test_cache)
    older.make(tmp_path / "mirror", Arch.AARCH64, repository, shared_engine, compiler.id, alpine.id)
    route = Step(image=alpine.id, argv=("ip", "route", "show", "default"), network=True, timeout=60, name="route")
    gateway = shared_engine.check(route).output.split()[2]
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    made = Workspace.make(tmp_path / "w")
    made.case("older", shell_init_cmd="cat /usr/share/older", success_regex=["^of the older"], qcase={"packages": ["older"]})
    handler = functools.partial(_Quiet, directory=str(tmp_path / "mirror"))
    with ThreadingHTTPServer((gateway, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {
            "QCASE_PACKAGE_REPOSITORIES": f"http://{gateway}:{server.server_port}",
            "QCASE_PACKAGE_KEYS": str(repository.key),
        }
        outcome = run(made, store=store, env=settings)
        server.shutdown()
    assert outcome.verdicts == {"older": "pass"}, outcome.said
    (file,) = downloads(store)
    assert file.read_bytes() == (tmp_path / "mirror" / Arch.AARCH64 / older.NAME).read_bytes()
    crash_cleanup.remove_tree(store / "v2")
    assert "cannot be reached" in run(made, store=store, env=settings).case("older")["reason"]
    assert run(made, "--offline", store=store, env=settings).verdicts == {"older": "pass"}
