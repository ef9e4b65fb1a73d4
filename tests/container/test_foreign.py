"""Toolchain images of others, by their digest, from a real registry: Debian's, in a container on a port of this machine alone."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from qcase.containers.engine import Engine
from qcase.errors import InfraError
from qcase.host.crash_cleanup import remove_tree
from qcase.toolchains import foreign, images, oci, oci_layout, oci_seal, travel
from tests.packages import Repository
from tests.registry import Registry
from tests.vm import workspaces
from tests.vm.workspaces import Workspace, run

pytestmark = [pytest.mark.container, pytest.mark.timeout(1200)]

DOCKERFILE = "FROM {base}\nRUN echo of somebody else >/etc/somebody-else\n"


@dataclass(frozen=True)
class Pushed:
    """An image that only the registry has, until it is pulled. `reference` has its digest."""

    engine: Engine
    host: str
    reference: str

    def forget(self) -> None:
        """Have the engine lose it."""
        if self.engine.image_id(self.reference) is not None:
            self.engine.api.remove_image(self.reference, force=True)


@pytest.fixture
def pushed(registry: Registry, shared_engine: Engine, test_cache: Path) -> Iterator[Pushed]:
    api = shared_engine.api
    base = images.ensure("alpine", shared_engine, test_cache)
    dockerfile = io.BytesIO(DOCKERFILE.format(base=base.id).encode())
    name = f"{registry.host}/tools/alpine"
    built = [line for line in api.build(fileobj=dockerfile, tag=name, rm=True, forcerm=True, decode=True) if "error" in line]
    assert built == []
    said = list(api.push(name, stream=True, decode=True))
    digest = next((line["aux"]["Digest"] for line in said if "Digest" in line.get("aux", {})), None)
    assert digest is not None, said
    api.remove_image(f"{name}:latest", force=True)
    image = Pushed(shared_engine, registry.host, f"{name}@{digest}")
    image.forget()
    yield image
    image.forget()


def greeting(root: Path, reference: str) -> Workspace:
    """A case that needs the toolchain `alpine`, to install a package."""
    workspace = Workspace.make(root, f'[toolchain.alpine]\nimage = "{reference}"\n' if reference else "")
    workspace.case("greets", shell_init_cmd="greeting", success_regex=["hello from a package"], qcase={"packages": ["greeting"]})
    return workspace


def test_an_image_is_pulled_by_its_digest_and_used(
    pushed: Pushed, repository: Repository, test_cache: Path, tmp_path: Path
) -> None:
    workspace = greeting(tmp_path / "w", pushed.reference)
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    first = run(workspace, store=store, env=repository.environment)
    assert first.verdicts == {"greets": "pass"}, first.said
    assert f"pulling {pushed.reference}" in first.said
    # What was made with it is not what our own image makes, as far as keys can tell.
    other = greeting(tmp_path / "other", pushed.reference)
    config = other.root / "qcase.toml"
    config.write_text(config.read_text().partition("[toolchain")[0])
    assert run(other, store=store, env=repository.environment).case("greets")["cache"] == "miss"
    again = run(workspace, "--offline", store=store, env=repository.environment)
    assert again.case("greets")["cache"] == "hit"
    assert "pulling" not in again.said
    # The packages are in the store, but nothing can be made of them.
    pushed.forget()
    remove_tree(store / "v2" / "overlays")
    offline = run(workspace, "--offline", store=store, env=repository.environment)
    assert offline.exit_code == 3
    assert f"{pushed.reference}: is not there, and fetching is switched off" in offline.case("greets")["reason"]


def test_an_image_that_was_made_here_and_never_pushed(shared_engine: Engine, test_cache: Path, tmp_path: Path) -> None:
    base = images.ensure("alpine", shared_engine, test_cache)
    dockerfile = io.BytesIO(f"FROM {base.id}\nRUN echo {tmp_path.name} >/etc/made-here\n".encode())
    said = list(shared_engine.api.build(fileobj=dockerfile, tag="made-here", rm=True, forcerm=True, decode=True))
    assert [line for line in said if "error" in line] == []
    made = shared_engine.image_id("made-here:latest")
    assert made is not None
    try:
        reference = f"made-here@{made}"
        image = foreign.foreign(reference, shared_engine, tmp_path, offline=True)
        assert image.id == made
        assert image.identity == foreign.foreign_identity(reference) != base.identity
    finally:
        shared_engine.api.remove_image("made-here:latest", force=True)


def test_an_image_that_the_registry_does_not_have_and_a_registry_that_is_not_there(pushed: Pushed, tmp_path: Path) -> None:
    name, _, _ = pushed.reference.partition("@")
    for reference in (f"{name}@sha256:{'0' * 64}", f"localhost:9/tools/alpine@sha256:{'0' * 64}"):
        with pytest.raises(InfraError) as caught:
            foreign.foreign(reference, pushed.engine, tmp_path)
        assert caught.value.where == f"pulling {reference}"
        assert caught.value.hint
        assert "\n" not in caught.value.what


def test_what_was_pulled_is_there_from_then_on(pushed: Pushed, tmp_path: Path) -> None:
    assert foreign.known_foreign(pushed.reference, tmp_path) is None
    image = foreign.foreign(pushed.reference, pushed.engine, tmp_path)
    assert foreign.foreign(pushed.reference, pushed.engine, tmp_path, offline=True) == image
    assert image.identity == foreign.foreign_identity(pushed.reference) == foreign.known_foreign(pushed.reference, tmp_path)


def test_what_qcase_pushed_has_the_keys_of_what_was_built(
    registry: Registry, shared_engine: Engine, repository: Repository, test_cache: Path, tmp_path: Path
) -> None:
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    plain = greeting(tmp_path / "plain", "")
    assert run(plain, store=store, env=repository.environment).case("greets")["cache"] == "miss"
    (pushed,) = travel.push(f"{registry.host}/keys", ["alpine"], shared_engine, test_cache)
    named = greeting(tmp_path / "named", pushed.reference)
    first = run(named, store=store, env=repository.environment)
    assert first.verdicts == {"greets": "pass"}, first.said
    assert first.case("greets")["cache"] == "hit"
    assert foreign.foreign(pushed.reference, shared_engine, store).identity == pushed.image.identity
    # A stranger's workspace cannot say that an image is ours.
    stranger = foreign.foreign(pushed.reference, shared_engine, store, believed=False)
    assert stranger.identity == foreign.foreign_identity(pushed.reference)


def test_an_image_for_another_machine(pushed: Pushed, tmp_path: Path) -> None:
    api = pushed.engine.api
    name, _, _ = pushed.reference.partition("@")
    with tarfile.open(
        fileobj=io.BytesIO(b"".join(api.get_image(foreign.foreign(pushed.reference, pushed.engine, tmp_path).id)))
    ) as saved:
        packed = oci_seal.seal(saved, {}, tmp_path / "layout", {})
    config = packed.config.replace(b'"amd64"', b'"arm64"')
    other = replace(packed, config=config)
    oci.put(tmp_path / "layout", config)
    assert [line for line in api.load_image(oci_layout.for_engine(other, f"{name}:arm")) if "error" in line] == []  # type: ignore[no-untyped-call]
    said = list(api.push(f"{name}:arm", stream=True, decode=True))
    api.remove_image(f"{name}:arm", force=True)
    digest = next(line["aux"]["Digest"] for line in said if "Digest" in line.get("aux", {}))
    with pytest.raises(InfraError, match="it is for linux/arm64, and this engine runs linux/amd64"):
        foreign.foreign(f"{name}@{digest}", pushed.engine, tmp_path)
    api.remove_image(f"{name}@{digest}", force=True)
