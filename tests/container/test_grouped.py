"""Groups of subcases of every kind: what is built, what is taken from the store, and what is left out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qcase import events
from qcase.arch import Arch
from qcase.config import image_lock
from qcase.errors import BuildError, QcaseError, UsageError
from qcase.model import Cache
from qcase.prepare import explain, prepare_case, run_folders
from qcase.prepare.session import Session
from qcase.store.content import Kind
from qcase.store.store import Store
from qcase.suite import cases, discover
from qcase.toolchains.records import Image
from tests.vm import workspaces
from tests.vm.workspaces import Workspace, c_program, says

pytestmark = pytest.mark.container

TARGET = "test"


def rust_program(text: str, name: str, folder: str) -> dict[str, str]:
    return {
        f"{folder}/Cargo.toml": f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n',
        f"{folder}/src/main.rs": f'fn main() {{ println!("{text}"); }}\n',
    }


@dataclass
class Prepared:
    """What preparing a case came to. `built`: what was not in the store, by name; `installed`: the files of all overlays."""

    cache: Cache
    broken: dict[str, QcaseError]
    built: list[str] = field(default_factory=list)
    compiled: int = 0
    unbuilt: list[str] = field(default_factory=list)
    untrusted: tuple[str, ...] = ()
    commands: tuple[str, ...] | None = None


class Group:
    """A grouped case in a workspace of its own, prepared as often as a test wants; nothing is booted."""

    def __init__(self, root: Path, store: Path) -> None:
        self.workspace = Workspace.make(root)
        self.store = store

    def write(self, files: dict[str, str], **keys: Any) -> Path:
        return self.workspace.case("group", files, **keys)

    @contextmanager
    def session(self, emit: events.Emit) -> Iterator[tuple[cases.Case, Session]]:
        workspace = cases.Workspace.open(self.workspace.root)
        (case,) = discover.discover(workspace, Arch.AARCH64, TARGET).cases
        assert isinstance(case, cases.Case), case
        with Session(workspace, Arch.AARCH64, TARGET, Store(self.store), emit) as session:
            yield case, session

    def prepare(self, only: str = "") -> Prepared:
        heard: list[events.Event] = []
        with self.session(heard.append) as (case, session):
            case = next((case.part(one) for one in case.subcases if one.name == only), case)
            layout = run_folders.case_asset_layout(self.workspace.root, TARGET, case.display_name)
            with prepare_case.prepare_case_assets(case, layout, session, self.workspace.root / "build.log") as prepared:
                broken = {one.subcase: one.error for one in prepared.broken}
                return Prepared(
                    prepared.cache,
                    broken,
                    sorted(event.what.removeprefix("the ") for event in heard if isinstance(event, events.Missed)),
                    sum(isinstance(event, events.PhaseStarted) and event.detail == "compiling" for event in heard),
                    [one.subcase for one in prepared.unbuilt],
                    prepared.untrusted,
                    prepared.commands,
                )

    def keys(self) -> dict[str, str]:
        with self.session(lambda _: None) as (case, session):
            return {wanted.name: wanted.key.digest for wanted in explain.wanted(case, session) if wanted.kind is Kind.OVERLAY}


@pytest.fixture
def group(tmp_path: Path, test_cache: Path, toolchain_rust: Image) -> Group:
    return Group(tmp_path / "w", workspaces.fresh_store(tmp_path / "store", test_cache))


def overlay_of(name: str) -> str:
    return f"overlay of normal/group/{name}"


def test_of_ten_subcases_the_one_that_changed_is_built(group: Group) -> None:
    files: dict[str, str] = {}
    for number in range(3):
        files |= c_program(says(f"c {number}"), f"c{number}", f"c{number}/c")
    files |= rust_program("rust", "r0", "r0/rust")
    for number in range(6):
        files[f"s{number}/sh/s{number}"] = f"#!/bin/sh\necho sh {number}\n"
    names = sorted({path.partition("/")[0] for path in files})
    assert len(names) == 10
    folder = group.write(files, test_commands=names)
    first = group.prepare()
    assert (first.cache, first.compiled, first.broken) == (Cache.MISS, 4, {})
    assert {overlay_of(name) for name in names} < set(first.built)

    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    again = group.prepare()
    assert (again.cache, again.built) == (Cache.HIT, [])

    (folder / "c1/c/main.c").write_text(says("c another"))
    edited = group.prepare()
    assert (edited.built, edited.compiled) == (["image of normal/group", overlay_of("c1")], 1)

    (folder / "r0/rust/src/main.rs").chmod(0o755)
    executable = group.prepare()  # the same program comes of it, and so the same image
    assert (executable.built, executable.compiled) == ([overlay_of("r0")], 1)

    group.write({}, test_commands=names, timeout=7)
    waits = group.prepare()
    assert (waits.cache, waits.built) == (Cache.HIT, [])


def test_another_compiler_in_the_image_moves_what_it_makes_and_nothing_else(group: Group, test_cache: Path) -> None:
    files = c_program(says("c"), "one", "one/c") | {"two/sh/two": "#!/bin/sh\n"} | rust_program("rust", "three", "three/rust")
    group.write(files, test_commands=["one", "two", "three"])
    before = group.keys()
    # The record of an image of the same recipe that has one package more, as it is after Debian brought it out.
    shutil.rmtree(group.store / "images")
    (group.store / "images").mkdir()
    for name in ("c", "rust"):
        record = json.loads((test_cache / "images" / f"{name}.json").read_bytes())
        if name == "c":
            content = json.loads((test_cache / "images" / f"{record['image'].removeprefix('sha256:')}.json").read_bytes())
            record["identity"] = image_lock.identity(record["recipe"], [*content["packages"], "gcc-15 amd64 15.1.0-1"])
            record["fresh"] = True
        (group.store / "images" / f"{name}.json").write_text(json.dumps(record))
    after = group.keys()
    assert [name for name in before if before[name] != after[name]] == ["normal/group/one"]


BROKEN = c_program("int main(void) { return not_declared_anywhere; }\n", "rdtsc", "rdtsc/c")


def test_a_subcase_that_no_command_names_is_not_built(group: Group) -> None:
    files = c_program(says("one"), "one", "one/c") | BROKEN
    group.write(files, test_commands=["one --fast"])
    prepared = group.prepare()
    assert (prepared.compiled, prepared.broken) == (1, {})
    group.write({}, test_commands=["one --fast"], qcase={"build": "all"})
    assert set(group.prepare().broken) == {"normal/group/rdtsc"}


COMPUTED = {
    "other/c/CMakeLists.txt": """\
        cmake_minimum_required(VERSION 3.16)
        project(other C)
        string(ASCII 117 110 97 109 101 name)
        add_executable(${name} main.c)
        target_link_options(${name} PRIVATE -static)
        install(TARGETS ${name} DESTINATION bin)
        """,
    "other/c/main.c": says("not the guest's"),
}


def test_a_subcase_that_computes_the_name_of_a_program_of_the_guest_is_built(group: Group) -> None:
    """The name is in no file, so that the sources do not tell, and the guest has a program of that name."""
    folder = group.write(c_program(says("one"), "one", "one/c") | COMPUTED, test_commands=["one", "uname"])
    prepared = group.prepare()
    assert (prepared.compiled, prepared.unbuilt, prepared.untrusted) == (2, [], ())
    assert overlay_of("other") in prepared.built
    assert group.prepare().cache is Cache.HIT

    (folder / "other/c/main.c").write_text("int main(void) { return not_declared_anywhere; }\n")
    prepared = group.prepare()
    assert (prepared.broken, prepared.unbuilt, prepared.untrusted) == ({}, ["normal/group/other"], ("uname",))
    group.write({}, test_commands=["one --fast", "one"])
    assert group.prepare().untrusted == ()


def test_one_cmake_project_for_a_whole_group(group: Group) -> None:
    files = {
        "CMakeLists.txt": """\
            cmake_minimum_required(VERSION 3.16)
            project(group C)
            set(CMAKE_EXE_LINKER_FLAGS "-static")
            foreach(name one two)
                add_subdirectory(${name}/c)
            endforeach()
            """,
        "prebuild.sh": 'echo "#define TEXT \\"from the script\\"" >one/c/text.h\n',
        "three/sh/three": "#!/bin/sh\necho three\n",
    }
    for name in ("one", "two"):
        files[f"{name}/c/CMakeLists.txt"] = f"add_executable({name} main.c)\ninstall(TARGETS {name} DESTINATION usr/bin)\n"
    files["one/c/main.c"] = '#include <stdio.h>\n#include "text.h"\nint main(void) { puts(TEXT); return 0; }\n'
    files["two/c/main.c"] = says("two")
    folder = group.write(files, test_commands=["one", "two", "three"])
    first = group.prepare()
    assert (first.compiled, first.broken) == (1, {})
    assert "overlay of normal/group: CMakeLists.txt" in first.built
    assert group.prepare().cache is Cache.HIT
    (folder / "two/c/main.c").write_text("int main(void) { return not_declared_anywhere; }\n")
    assert set(group.prepare().broken) == {"normal/group: CMakeLists.txt"}


def test_a_part_of_a_groups_project_is_built_alone(group: Group) -> None:
    """Its CMake is told which one; another part that does not compile is no concern of it."""
    files = {
        "CMakeLists.txt": """\
            cmake_minimum_required(VERSION 3.16)
            project(group C)
            set(CMAKE_EXE_LINKER_FLAGS "-static")
            if(NOT DEFINED QCASE_GROUPED_C_SUBCASES)
                set(QCASE_GROUPED_C_SUBCASES brk net/ping)
            endif()
            foreach(name IN LISTS QCASE_GROUPED_C_SUBCASES)
                add_subdirectory(${name})
            endforeach()
            """,
        "prebuild.sh": 'echo "#define TEXT \\"from the script\\"" >brk/text.h\n',
        "brk/main.c": '#include <stdio.h>\n#include "text.h"\nint main(void) { puts(TEXT); return 0; }\n',
        "net/ping/main.c": "int main(void) { return not_declared_anywhere; }\n",
        "three/sh/three": "#!/bin/sh\necho three\n",
    }
    for name in ("brk", "net/ping"):
        program = name.replace("/", "-")
        installed = f"add_executable({program} main.c)\ninstall(TARGETS {program} DESTINATION usr/bin/tests)\n"
        files[f"{name}/CMakeLists.txt"] = f"project({program} C)\n{installed}"
    loop = "for test in /usr/bin/tests/*; do $test || exit 1; done"
    folder = group.write(files, test_commands=[loop, "three"])
    first = group.prepare("brk")
    assert (first.compiled, first.broken, first.commands) == (1, {}, (loop,))
    assert {"image of normal/group/brk", "overlay of normal/group: CMakeLists.txt"} <= {*first.built}
    assert not any("three" in name for name in first.built)
    assert group.prepare("brk").cache is Cache.HIT
    with pytest.raises(BuildError):
        group.prepare("net/ping")
    assert set(group.prepare().broken) == {"normal/group: CMakeLists.txt"}
    (folder / "CMakeLists.txt").write_text((folder / "CMakeLists.txt").read_text().replace("QCASE_GROUPED_C_SUBCASES", "PARTS"))
    with pytest.raises(UsageError, match="does not read QCASE_GROUPED_C_SUBCASES"):
        group.prepare("brk")


def test_two_kinds_that_install_one_path_are_named(group: Group) -> None:
    files = {"shell/sh/same": "#!/bin/sh\n"} | rust_program("rust", "same", "crate/rust")
    group.write(files, test_commands=["same"])
    with pytest.raises(BuildError) as caught:
        group.prepare()
    assert caught.value.what == "normal/group/crate and normal/group/shell both install usr/bin/same, and not the same"
