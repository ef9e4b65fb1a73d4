"""Toolchain images that leave one store for another: as a layout, and by a real registry."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qcase.containers.engine import Engine
from qcase.containers.step import Step
from qcase.errors import InfraError, UsageError
from qcase.events import Event
from qcase.guests import debian_archive
from qcase.host import process
from qcase.toolchains import images, oci, oci_layout, oci_seal, recipes, travel
from qcase.toolchains.base import guest_base, sources_list, with_mirror
from qcase.toolchains.records import Image
from tests.registry import Registry
from tests.vm import workspaces

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

# What differs from build to build: times, a log, a cache, the day of a password.
RECIPE = r"""ARG BASE
FROM ${BASE}
RUN date >/var/log/built && echo %s >/greeting && adduser -D -H %s && ln /greeting /again
RUN mkdir -p /etc/apt /opt/qcase && echo 'own all 1' >/opt/qcase/packages.txt && mkdir -p /var/cache/x && date >/var/cache/x/now
CMD ["/bin/sh"]
"""


@dataclass(frozen=True)
class Own:
    """A recipe of the tests' own, what was built of it and saved in `layout`, and an engine, which has it no more."""

    name: str
    recipes: Path
    engine: Engine
    test_cache: Path
    folder: Path
    built: Image
    saved: travel.Travelled

    @property
    def layout(self) -> Path:
        return self.folder / "layout"

    def store(self, name: str) -> Path:
        """An empty store, but for the guests."""
        return _store(self.folder / f"{name}-{uuid.uuid4().hex[:6]}", self.test_cache)

    def forget(self) -> None:
        """Have the engine lose all images of this name."""
        for image in self.engine.api.images(filters={"label": f"qcase.image={self.name}"}):
            self.engine.api.remove_image(image["Id"], force=True)

    def save(self, path: Path, store: Path) -> travel.Travelled:
        (one,) = travel.save(path, [self.name], self.engine, store, None, self.recipes)
        return one

    def load(self, path: Path, store: Path) -> Image:
        (image,) = travel.load(path, [], self.engine, store, None, self.recipes)
        return image


def _store(folder: Path, test_cache: Path) -> Path:
    folder.mkdir()
    (folder / "guests").symlink_to(test_cache / "guests", target_is_directory=True)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shared_engine: Engine, test_cache: Path) -> Iterator[Own]:
    workspaces.provide(test_cache)
    name = f"travel-{uuid.uuid4().hex[:8]}"
    folder = tmp_path_factory.mktemp(name)
    recipe = folder / "recipes" / name
    recipe.mkdir(parents=True)
    (recipe / "Containerfile").write_text(RECIPE % (name, name[-8:]))
    (recipe / "base.toml").write_text('[base]\nguest = "alpine"\n')
    store = _store(folder / "first", test_cache)
    built = images.build_anew(name, shared_engine, store, None, recipe.parent, fresh=True)
    (saved,) = travel.save(folder / "layout", [name], shared_engine, store, None, recipe.parent)
    own = Own(name, recipe.parent, shared_engine, test_cache, folder, built, saved)
    own.forget()
    yield own
    own.forget()


@pytest.fixture
def own(made: Own) -> Iterator[Own]:
    yield made
    made.forget()


def left(engine: Engine) -> list[object]:
    """What an image that did not pass would leave in the engine."""
    return [image for image in engine.api.images() if any("qcase/arriving" in tag for tag in image["RepoTags"] or ())]


def test_two_builds_are_one_image(own: Own, tmp_path: Path) -> None:
    store = own.store("second")
    second = images.build_anew(own.name, own.engine, store, None, own.recipes, fresh=True)
    assert second.id != own.built.id, "the engine gave one image twice, so nothing was compared"
    assert own.save(tmp_path / "layout", store).digest == own.saved.digest
    ours, theirs = ({path.name: path.read_bytes() for path in one.rglob("*") if path.is_file()} for one in (tmp_path, own.layout))
    assert ours == theirs


@pytest.mark.parametrize("path", ["images.tar", "layout"])
def test_an_image_is_loaded_and_counts_as_if_it_were_built(own: Own, path: str, tmp_path: Path) -> None:
    there = own.store("there")
    source = own.layout
    if path == "images.tar":
        source = tmp_path / path
        source.write_bytes(b"".join(oci_layout.archive_of(own.layout)))
    assert images.known_identity(own.name, there, own.recipes) is None
    events: list[Event] = []
    (loaded,) = travel.load(source, [own.name], own.engine, there, events.append, own.recipes)
    assert (loaded.name, loaded.identity, loaded.packages) == (own.name, own.built.identity, ("own all 1",))
    assert images.known_identity(own.name, there, own.recipes) == own.built.identity
    assert images.ensure(own.name, own.engine, there, events.append, own.recipes) == loaded
    assert not any("building" in str(event) for event in events)
    step = Step(image=loaded.id, argv=("cat", "/greeting", "/again"), timeout=60, name="look")
    assert own.engine.run(step).output.split() == [own.name] * 2
    assert left(own.engine) == []
    # It may go on from there, and is still the same.
    assert own.save(tmp_path / "again.tar", there).digest == own.saved.digest
    assert (tmp_path / "again.tar").read_bytes() == b"".join(oci_layout.archive_of(own.layout))


def test_what_the_engine_has_already_is_taken_as_it_is(own: Own, tmp_path: Path) -> None:
    """No layer is read, so none need be there."""
    loaded = own.load(own.layout, own.store("here"))
    shutil.copytree(own.layout, tmp_path / "layout")
    for layer in own_layers(own):
        (tmp_path / "layout" / oci.blob_path(layer.digest)).unlink()
    there = own.store("there")
    assert own.load(tmp_path / "layout", there) == loaded
    assert images.known_identity(own.name, there, own.recipes) == own.built.identity
    own.forget()
    with pytest.raises(InfraError, match="is missing"):
        own.load(tmp_path / "layout", own.store("empty"))


def test_what_the_engine_itself_loads(own: Own) -> None:
    """`docker load` takes the file too, and qcase recognises what came that way, in any store."""
    archive = io.BytesIO(b"".join(oci_layout.archive_of(own.layout)))
    assert [line for line in own.engine.api.load_image(archive) if "error" in line] == []  # type: ignore[no-untyped-call]
    found = images.find(own.name, own.engine, own.store("there"), own.recipes)
    assert found is not None
    assert found.identity == own.built.identity


def test_an_image_goes_to_a_registry_and_comes_back(own: Own, registry: Registry) -> None:
    here, there = own.store("here"), own.store("there")
    own.load(own.layout, here)
    (pushed,) = travel.push(f"{registry.host}/team/os", [own.name], own.engine, here, None, own.recipes)
    assert pushed.reference == f"{registry.host}/team/os/{own.name}@{own.saved.digest}"
    assert pushed.sent > 1_000_000
    (again,) = travel.push(f"{registry.host}/team/os", [own.name], own.engine, here, None, own.recipes)
    assert (again.reference, again.sent) == (pushed.reference, 0)
    own.forget()
    (pulled,) = travel.pull([pushed.reference], own.engine, there, None, own.recipes)
    assert (pulled.name, pulled.identity, pulled.packages) == (own.name, own.built.identity, own.built.packages)
    assert images.known_identity(own.name, there, own.recipes) == own.built.identity
    with urllib.request.urlopen(f"http://{registry.host}/v2/team/os/{own.name}/tags/list") as answer:
        assert json.load(answer)["tags"] == [own.built.identity[:12]]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("rm {0}", "is missing"),
        ("truncate -s -10 {0}", "breaks off after"),
        ("printf x | dd of={0} bs=1 seek=5000 conv=notrunc 2>/dev/null", "is another one|is not compressed as it says"),
    ],
    ids=["removed", "cut", "altered"],
)
def test_what_a_registry_has_broken_is_not_taken(own: Own, registry: Registry, script: str, said: str) -> None:
    here, there = own.store("here"), own.store("there")
    own.load(own.layout, here)
    (pushed,) = travel.push(f"{registry.host}/broken/{own.name}", [own.name], own.engine, here, None, own.recipes)
    manifest = json.loads((own.layout / oci.blob_path(pushed.digest)).read_bytes())
    blob = registry.blob(manifest["layers"][0]["digest"])
    own.forget()
    registry.sh(f"cp {blob} {blob}.kept")
    registry.sh(script.format(blob))
    with pytest.raises(InfraError, match=said) as caught:
        travel.pull([pushed.reference], own.engine, there, None, own.recipes)
    assert registry.host in caught.value.where
    assert images.known_identity(own.name, there, own.recipes) is None
    assert own.engine.api.images(filters={"label": f"qcase.image={own.name}"}) == []
    assert [path for path in (there / "images").iterdir() if path.name.startswith(".")] == []
    registry.sh(f"mv {blob}.kept {blob}")
    assert travel.pull([pushed.reference], own.engine, there, None, own.recipes)


def relabelled(layout: Path, change: Callable[[dict[str, Any]], object], *, sealed: bool) -> None:
    """Have the one image of a layout say something else of itself, with digests that are right."""
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads((layout / oci.blob_path(index["manifests"][0]["digest"])).read_bytes())
    config = json.loads((layout / oci.blob_path(manifest["config"]["digest"])).read_bytes())
    change(config)
    if sealed:
        own = config["config"]
        own["Labels"][oci.SEAL] = oci.seal_of(config["architecture"], config["os"], own, config["rootfs"]["diff_ids"])
    content = json.dumps(config).encode()
    manifest["config"] |= {"digest": oci.put(layout, content), "size": len(content)}
    index["manifests"][0]["digest"] = oci.put(layout, json.dumps(manifest).encode())
    (layout / "index.json").write_text(json.dumps(index))


Change = Callable[[dict[str, Any]], object]
REFUSED: list[tuple[str, Change, bool, str]] = [
    ("machine", lambda config: config.update(architecture="arm64"), True, "it is for linux/arm64, and this engine runs linux/"),
    (
        "recipe",
        lambda config: config["config"]["Labels"].update({oci.RECIPE_LABEL: "f" * 64}),
        True,
        "it was made from another recipe",
    ),
    (
        "name",
        lambda config: config["config"]["Labels"].update({oci.NAME_LABEL: "../x"}),
        True,
        "for which there is no recipe here",
    ),
    (
        "identity",
        lambda config: config["config"]["Labels"].update({oci.IDENTITY_LABEL: "f" * 64}),
        True,
        "it says that its identity is",
    ),
    ("command", lambda config: config["config"].update(Env=["PATH=/evil"]), False, "it is no image that qcase saved or pushed"),
    ("labels", lambda config: config["config"].pop("Labels"), False, "it is no image that qcase saved or pushed"),
]


@pytest.mark.parametrize(("change", "sealed", "said"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED])
def test_an_image_that_is_not_what_it_should_be(own: Own, change: Change, sealed: bool, said: str, tmp_path: Path) -> None:
    there = own.store("there")
    shutil.copytree(own.layout, tmp_path / "layout")
    relabelled(tmp_path / "layout", change, sealed=sealed)
    with pytest.raises(InfraError, match=said) as caught:
        own.load(tmp_path / "layout", there)
    assert str(tmp_path / "layout") in caught.value.where
    assert images.known_identity(own.name, there, own.recipes) is None
    assert own.engine.api.images(filters={"label": f"qcase.image={own.name}"}) == []
    assert left(own.engine) == []


def test_what_was_made_from_a_sealed_image_is_another(own: Own) -> None:
    loaded = own.load(own.layout, own.store("there"))
    api = own.engine.api
    assert oci.sealed_identity(api.inspect_image(loaded.id)) == loaded.identity  # type: ignore[no-untyped-call]
    for line in ("RUN echo other >/greeting", "ENV X=1", "LABEL x=1"):
        tag = f"qcase/{own.name}:derived"
        dockerfile = io.BytesIO(f"FROM {loaded.id}\n{line}\n".encode())
        assert [said for said in api.build(fileobj=dockerfile, tag=tag, rm=True, decode=True) if "error" in said] == []
        assert oci.sealed_identity(api.inspect_image(tag)) is None, line  # type: ignore[no-untyped-call]


def test_what_is_built_upon_a_sealed_image_has_a_mirror(own: Own, tmp_path: Path) -> None:
    """It leaves the mirror of the machine that built it out, and what is built upon it may want to fetch packages."""
    there = own.store("there")
    loaded = own.load(own.layout, there)
    mirrors = debian_archive.Mirrors(debian_archive.Source("http://mirror.example/debian", "", ("main",)))
    sources = sources_list("trixie", mirrors)
    base = with_mirror(loaded.id, own.engine, sources, mirrors)
    assert base != loaded.id
    assert with_mirror(loaded.id, own.engine, sources, mirrors) == base
    look = Step(image=base, argv=("cat", "/etc/apt/sources.list"), timeout=60, name="look")
    assert own.engine.run(look).output.splitlines() == sources
    assert with_mirror(base, own.engine, sources, mirrors) == base, "it is no sealed one any more"
    # Sealed again there is no trace of it.
    with tarfile.open(fileobj=io.BytesIO(b"".join(own.engine.api.get_image(base)))) as saved:
        again = oci_seal.seal(saved, {}, tmp_path / "again", {})
    assert again.layers == own_layers(own)
    own.engine.api.remove_image(base, force=True)


def test_of_images_from_one_place_the_latest_is_taken(own: Own) -> None:
    store = own.store("here")
    latest = own.load(own.layout, store)
    other = own.engine.image_id(guest_base(own.engine, store, None, recipes.base_definition(own.recipes / own.name)))
    record = json.loads((store / "images" / f"{own.name}.json").read_bytes())
    older = store / "images" / f"{own.name}.{'0' * 16}.json"  # of an identity that comes before that of the latest
    older.write_text(json.dumps({**record, "image": other, "identity": "0" * 64}))
    assert images.build_from(own.name, "", own.engine, store, None, own.recipes).id == latest.id


def own_layers(own: Own) -> tuple[oci.Blob, ...]:
    manifest = json.loads((own.layout / oci.blob_path(own.saved.digest)).read_bytes())
    return tuple(oci.Blob(layer["mediaType"], layer["digest"], layer["size"]) for layer in manifest["layers"])


def test_requests_that_make_no_sense(own: Own, tmp_path: Path) -> None:
    store = own.store("here")
    with pytest.raises(UsageError, match="is not built") as caught:
        own.save(tmp_path / "layout", store)
    assert f"qcase images build {own.name}" in caught.value.hint
    assert not (tmp_path / "layout").exists()
    with pytest.raises(UsageError, match="is there already"):
        own.save(own.layout, store)
    with pytest.raises(UsageError, match="there is no folder to write it to"):
        own.save(tmp_path / "nowhere" / "x.tar", store)
    with pytest.raises(UsageError, match="there is no image rust in it") as caught:
        travel.load(own.layout, ["rust"], own.engine, store, None, own.recipes)
    assert caught.value.hint == f"there are: {own.name}"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full(own: Own, tmp_path: Path) -> None:
    store = own.store("here")
    own.load(own.layout, store)
    small = tmp_path / "small"
    small.mkdir()
    mounted = process.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], check=False, timeout=30)
    if mounted.returncode != 0:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(InfraError, match="No space left on device"):
            own.save(small / "layout", store)
        assert list(small.iterdir()) == []
    finally:
        process.run(["umount", str(small)], timeout=30)


# Dies while the engine has the image, and it is not taken over.
DIES = """
import os, signal, sys
from pathlib import Path
from qcase.containers.engine import Engine
from qcase.toolchains import image_contents, images, travel

image_contents.take_in = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
with Engine.connect() as engine:
    travel.load(Path(sys.argv[1]), [], engine, Path(sys.argv[2]), None, Path(sys.argv[3]))
"""


def test_who_is_killed_leaves_nothing_in_the_engine(own: Own) -> None:
    store = own.store("here")
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(own.layout), str(store), str(own.recipes)], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    until = time.monotonic() + 30
    while time.monotonic() < until and (left(own.engine) or list((store / "images").glob(".scratch*"))):
        time.sleep(0.2)
    assert left(own.engine) == []
    assert own.engine.image_id(own.built.id) is None
    assert not list((store / "images").glob(".scratch*"))


def test_the_layout_is_one_that_others_understand(own: Own) -> None:
    """Of what the specification wants of a layout and of a layer."""
    assert json.loads((own.layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((own.layout / "index.json").read_bytes())["manifests"]
    assert entry["platform"] == {"architecture": "amd64", "os": "linux"}
    manifest = (own.layout / oci.blob_path(entry["digest"])).read_bytes()
    assert (oci.sha256(manifest), len(manifest)) == (entry["digest"], entry["size"])
    for layer in json.loads(manifest)["layers"]:
        with tarfile.open(own.layout / oci.blob_path(layer["digest"]), "r:gz") as tar:
            assert tar.getnames()
