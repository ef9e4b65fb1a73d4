"""Toolchain images built for real, on the base that the host's mirror gives. No network is needed once there is a base."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcase.config import image_lock
from qcase.containers.engine import Engine
from qcase.errors import InfraError
from qcase.events import Event, Progress
from qcase.guests import debian_archive
from qcase.toolchains import base, image_contents, images, records
from qcase.toolchains.recipes import BaseDefinition, recipe_digest

pytestmark = pytest.mark.container

SOON = 30.0


@pytest.fixture
def name(engine: Engine) -> Iterator[str]:
    """A name that no other test's image has. Whatever was built under it is removed."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    for image in engine.api.images(filters={"label": f"qcase.image={name}"}):
        engine.api.remove_image(image["Id"], force=True)


@pytest.fixture
def recipes(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / "recipes" / name
    folder.mkdir(parents=True)
    # With the name in it, the engine's layer cache holds nothing of another test's.
    (folder / "Containerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\nRUN echo hello {name} | tee /greeting\n")
    return tmp_path / "recipes"


def messages(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Progress)]


def test_an_image_is_built_once_and_then_known(engine: Engine, name: str, recipes: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    built = images.ensure(name, engine, tmp_path, events.append, recipes)
    said = messages(events)
    assert f"image {name}: step 3/6: RUN echo hello {name} | tee /greeting" in said
    assert said[-1].startswith(f"image {name}: built in ")
    assert any(line.startswith("base-files amd64 13") for line in built.packages)
    assert built.identity == image_lock.identity(recipe_digest(name, recipes), built.packages)
    assert f"\nhello {name}\n" in (tmp_path / "images" / f"{name}.log").read_text()

    events.clear()
    assert images.ensure(name, engine, tmp_path, events.append, recipes) == built
    assert events == []
    assert images.known_identity(name, tmp_path, recipes) == built.identity
    assert [path for path in (tmp_path / "images").iterdir() if path.name.startswith(".")] == []


def test_another_store_takes_what_the_engine_has(engine: Engine, name: str, recipes: Path, tmp_path: Path) -> None:
    built = images.ensure(name, engine, tmp_path, None, recipes)
    events: list[Event] = []
    assert images.ensure(name, engine, tmp_path / "another", events.append, recipes) == built
    assert events == []
    # Somebody's image of that name, which was not built from the recipe, is not taken.
    (recipes / name / "Containerfile").write_text("ARG BASE\nFROM ${BASE}\nRUN echo other\n")
    engine.api.tag(built.id, f"qcase/{name}", recipe_digest(name, recipes)[:12])
    assert images.ensure(name, engine, tmp_path / "third", None, recipes).id != built.id


def test_modes_and_owners_of_a_checkout_do_not_cost_a_layer(engine: Engine, name: str, recipes: Path, tmp_path: Path) -> None:
    (recipes / name / "Containerfile").write_text("ARG BASE\nFROM ${BASE}\nCOPY data program /\nRUN date +%N >/now\n")
    for file in ("data", "program"):
        (recipes / name / file).write_text(file)
    (recipes / name / "program").chmod(0o755)
    first = images.build_anew(name, engine, tmp_path, None, recipes)
    for path, mode in (("data", 0o600), ("program", 0o700), ("Containerfile", 0o640)):
        (recipes / name / path).chmod(mode)
        os.utime(recipes / name / path, (1, 1))
        if os.getuid() == 0:
            os.chown(recipes / name / path, 1234, 1234)
    assert images.build_anew(name, engine, tmp_path, None, recipes).id == first.id


def test_an_edit_of_the_recipe_gives_another_image(engine: Engine, name: str, recipes: Path, tmp_path: Path) -> None:
    first = images.ensure(name, engine, tmp_path, None, recipes)
    containerfile = recipes / name / "Containerfile"
    containerfile.write_text(containerfile.read_text().replace("hello", "good day"))
    assert images.known_identity(name, tmp_path, recipes) is None
    second = images.ensure(name, engine, tmp_path, None, recipes)
    assert second.id != first.id
    assert second.identity != first.identity
    assert second.packages == first.packages


def test_what_was_lost_is_found_or_made_again_with_the_same_identity(
    engine: Engine, name: str, recipes: Path, tmp_path: Path
) -> None:
    first = images.ensure(name, engine, tmp_path, None, recipes)
    (tmp_path / "images" / f"{first.id.removeprefix('sha256:')}.json").unlink()
    assert images.ensure(name, engine, tmp_path, None, recipes) == first  # read back from the image
    engine.api.remove_image(first.id, force=True)
    again = images.ensure(name, engine, tmp_path, None, recipes)
    assert engine.image_exists(again.id)
    assert again.identity == first.identity


def test_the_list_of_packages_that_a_recipe_writes(engine: Engine, name: str, recipes: Path, tmp_path: Path) -> None:
    listing = "mkdir -p /opt/qcase && printf 'musl source 1.2.5\\ngcc amd64 14\\n' > /opt/qcase/packages.txt"
    (recipes / name / "Containerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\nRUN {listing}\n")
    assert images.ensure(name, engine, tmp_path, None, recipes).packages == ("gcc amd64 14", "musl source 1.2.5")


def test_proxies_are_no_part_of_an_image(
    engine: Engine, name: str, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recipes / name / "Containerfile").write_text('ARG BASE\nFROM ${BASE}\nRUN echo "through $http_proxy"\n')
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    built = images.ensure(name, engine, tmp_path, None, recipes)
    assert "through http://proxy.example:3128" in (tmp_path / "images" / f"{name}.log").read_text()
    assert "proxy.example" not in json.dumps([engine.api.inspect_image(built.id), engine.api.history(built.id)])  # type: ignore[no-untyped-call]


def test_a_build_that_fails_says_step_and_last_lines(engine: Engine, name: str, recipes: Path, tmp_path: Path) -> None:
    with (recipes / name / "Containerfile").open("w") as file:
        file.write("ARG BASE\nFROM ${BASE}\nRUN for n in $(seq 40); do echo line $n; done; exit 7\n")
    with pytest.raises(InfraError) as caught:
        images.ensure(name, engine, tmp_path, None, recipes)
    assert (
        caught.value.where
        == f"{recipes / name / 'Containerfile'}, step 3/6: RUN for n in $(seq 40); do echo line $n; done; exit 7"
    )
    assert "returned a non-zero code: 7" in caught.value.what
    assert caught.value.what.endswith("line 39\nline 40")
    assert "line 25\n" not in caught.value.what
    assert f"{name}.log" in caught.value.hint
    assert images.known_identity(name, tmp_path, recipes) is None


def test_a_recipe_that_does_not_parse(engine: Engine, name: str, recipes: Path, tmp_path: Path) -> None:
    (recipes / name / "Containerfile").write_text("ARG BASE\nFROM ${BASE}\nRUNN true\n")
    with pytest.raises(InfraError, match=r"(?i)unknown instruction: RUNN"):
        images.ensure(name, engine, tmp_path, None, recipes)


def test_two_who_want_it_build_it_once(engine: Engine, name: str, recipes: Path, tmp_path: Path) -> None:
    (recipes / name / "Containerfile").write_text("ARG BASE\nFROM ${BASE}\nRUN sleep 1; cat /proc/sys/kernel/random/uuid > /id\n")
    events: list[Event] = []
    found: list[records.Image] = []

    def one() -> None:
        found.append(images.ensure(name, engine, tmp_path, events.append, recipes))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    said = messages(events)
    assert len([line for line in said if line.startswith(f"building the image {name}")]) == 1
    assert len([line for line in said if line.startswith("waiting for ") and line.endswith(f"builds the image {name}")]) == 1


KILLED = """
import sys
from pathlib import Path
from qcase.containers.engine import Engine
from qcase.toolchains import images

name, cache, recipes = sys.argv[1:]
images.ensure(name, Engine.connect(), Path(cache), lambda event: print(event, flush=True), Path(recipes))
"""


@pytest.mark.alone  # five seconds are what was promised
def test_kill_9_during_a_build_leaves_no_container(engine: Engine, name: str, recipes: Path, tmp_path: Path) -> None:
    mark = f"sleep 600; : {name}"
    (recipes / name / "Containerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\nRUN {mark}\n")

    def left() -> list[str]:
        return [
            one["Id"]
            for one in engine.api.containers(all=True)
            if mark in one["Command"] or mark in " ".join(_command(one["Id"]))
        ]

    def _command(container: str) -> list[str]:
        try:
            return [str(part) for part in engine.api.inspect_container(container)["Config"]["Cmd"] or ()]
        except Exception:
            return []  # removed meanwhile

    argv = [sys.executable, "-c", KILLED, name, str(tmp_path), str(recipes)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + SOON
        while not left() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(left()) == 1
        child.kill()
        child.communicate()
    deadline = time.monotonic() + 5
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left() == []


def mirror_answers() -> bool:
    """Is the host's Debian mirror reached? Asked of the network itself, not of what is tested."""
    main = debian_archive.host_mirrors(debian_archive.APT, os.environ).main
    assert main is not None
    place = urllib.parse.urlsplit(main.uri)
    assert place.hostname is not None
    try:
        socket.create_connection((place.hostname, place.port or 80), timeout=10).close()
    except OSError:
        return False
    return True


def test_a_base_from_the_hosts_mirror(engine: Engine, tmp_path: Path) -> None:
    """Made where the mirror is reached; where it is not, because the tests are run again without a network, that is said."""
    events: list[Event] = []
    # The smallest that there is, and not the one that images are built upon: a new one of those would make them all build anew.
    smallest = BaseDefinition("trixie", "essential")
    if not mirror_answers():
        with pytest.raises(InfraError) as caught:
            base.make_base(engine, tmp_path, events.append, smallest)
        assert "is there a network" in caught.value.hint
        return
    name = base.make_base(engine, tmp_path, events.append, smallest)
    try:
        image = engine.api.inspect_image(name)  # type: ignore[no-untyped-call]
        assert name.startswith("qcase/base:trixie-")
        assert name.endswith(image["Config"]["Labels"]["qcase.packages"][:12])
        packages = image_contents.installed_packages(engine, tmp_path, image["Id"])
        assert image_lock.packages_digest(packages) == image["Config"]["Labels"]["qcase.packages"]
        assert base.base(engine, tmp_path) != name
    finally:
        engine.api.remove_image(name, force=True)
    assert messages(events)[0].startswith("making the base image, Debian trixie, from ")
    assert list((tmp_path / "images").glob(".scratch-*")) == []


def test_a_mirror_that_is_not_there(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCASE_DEBIAN_MIRROR", "http://mirror.invalid/debian")
    with pytest.raises(InfraError) as caught:
        base.make_base(engine, tmp_path, None, BaseDefinition("trixie", "minbase"))
    assert "mirror.invalid" in caught.value.where
    assert "is there a network" in caught.value.hint


def test_no_mmdebstrap(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfraError) as caught:
        base.make_base(engine, tmp_path, None, BaseDefinition("trixie", "minbase"))
    assert str(caught.value) == "mmdebstrap: mmdebstrap is not installed"
    assert "apt-get install mmdebstrap" in caught.value.hint


def test_a_base_that_is_there_is_taken(engine: Engine, tmp_path: Path) -> None:
    first = base.base(engine, tmp_path)
    events: list[Event] = []
    assert base.base(engine, tmp_path / "another cache", events.append) == first
    assert events == []
