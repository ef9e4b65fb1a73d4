"""Toolchain images of others, by their digest, from a real registry: Debian's, in a container on a port of this machine alone."""

from __future__ import annotations

import io
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcase import images
from qcase.containers import Engine
from qcase.content import remove_tree
from qcase.errors import InfraError
from qcase.process import Deadline
from tests.conftest import ROOT
from tests.packages import Repository
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


@pytest.fixture(scope="module")
def registry(shared_engine: Engine, test_cache: Path) -> Iterator[str]:
    api = shared_engine.api
    image = images.ensure("registry", shared_engine, test_cache, recipes=ROOT / "tests" / "registry" / "images")
    settings = api.create_host_config(port_bindings={5000: ("127.0.0.1",)})
    container = api.create_container(image.id, ports=[5000], host_config=settings)["Id"]
    try:
        api.start(container)
        port = api.inspect_container(container)["NetworkSettings"]["Ports"]["5000/tcp"][0]["HostPort"]
        deadline = Deadline.after(60)
        while True:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/v2/", timeout=5).close()
                break
            except OSError:
                assert not deadline.passed, api.logs(container)
                time.sleep(0.1)
        yield f"localhost:{port}"
    finally:
        api.remove_container(container, force=True, v=True)


@pytest.fixture
def pushed(registry: str, shared_engine: Engine, test_cache: Path) -> Iterator[Pushed]:
    api = shared_engine.api
    base = images.ensure("alpine", shared_engine, test_cache)
    dockerfile = io.BytesIO(DOCKERFILE.format(base=base.id).encode())
    name = f"{registry}/tools/alpine"
    built = [line for line in api.build(fileobj=dockerfile, tag=name, rm=True, forcerm=True, decode=True) if "error" in line]
    assert built == []
    said = list(api.push(name, stream=True, decode=True))
    digest = next((line["aux"]["Digest"] for line in said if "Digest" in line.get("aux", {})), None)
    assert digest is not None, said
    api.remove_image(f"{name}:latest", force=True)
    image = Pushed(shared_engine, registry, f"{name}@{digest}")
    image.forget()
    yield image
    image.forget()


def greeting(root: Path, reference: str) -> Workspace:
    """A case that needs the toolchain `alpine`, to install a package."""
    workspace = Workspace.make(root, f'[toolchain.alpine]\nimage = "{reference}"\n')
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
    remove_tree(store / "v1" / "overlays")
    offline = run(workspace, "--offline", store=store, env=repository.environment)
    assert offline.exit_code == 3
    assert f"{pushed.reference}: is not there, and fetching is switched off" in offline.case("greets")["reason"]


def test_an_image_that_the_registry_does_not_have_and_a_registry_that_is_not_there(pushed: Pushed) -> None:
    name, _, _ = pushed.reference.partition("@")
    for reference in (f"{name}@sha256:{'0' * 64}", f"localhost:9/tools/alpine@sha256:{'0' * 64}"):
        with pytest.raises(InfraError) as caught:
            images.foreign(reference, pushed.engine)
        assert caught.value.where == f"pulling {reference}"
        assert caught.value.hint
        assert "\n" not in caught.value.what


def test_what_was_pulled_is_there_from_then_on(pushed: Pushed) -> None:
    image = images.foreign(pushed.reference, pushed.engine)
    assert images.foreign(pushed.reference, pushed.engine, offline=True) == image
    assert image.identity == images.foreign_identity(pushed.reference)
