"""A real container registry: Debian's, in a container, on a port of this machine alone."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qcase.containers.engine import Engine
from qcase.host.process import Deadline
from qcase.toolchains import images
from tests.conftest import ROOT

STORAGE = "/tmp/registry/docker/registry/v2"


@dataclass(frozen=True)
class Registry:
    """`host` as images name it here, `address` in other containers of the engine.

    `sh` runs a script in its container, to break what it stores.
    """

    host: str
    address: str
    engine: Engine
    container: str

    def sh(self, script: str) -> None:
        api = self.engine.api
        started = str(api.exec_create(self.container, ["sh", "-euc", script])["Id"])
        said = api.exec_start(started)
        assert api.exec_inspect(started)["ExitCode"] == 0, said

    def blob(self, digest: str) -> str:
        """The path of a blob in the container."""
        digits = digest.removeprefix("sha256:")
        return f"{STORAGE}/blobs/sha256/{digits[:2]}/{digits}/data"


@contextmanager
def running(engine: Engine, cache: Path) -> Iterator[Registry]:
    """A registry that is empty, as long as it is needed."""
    api = engine.api
    image = images.ensure("registry", engine, cache, recipes=ROOT / "tests" / "registry" / "images")
    settings = api.create_host_config(port_bindings={5000: ("127.0.0.1",)})
    container = api.create_container(image.id, ports=[5000], host_config=settings, labels={"qcase": "1"})["Id"]
    try:
        api.start(container)
        network = api.inspect_container(container)["NetworkSettings"]
        port = network["Ports"]["5000/tcp"][0]["HostPort"]
        deadline = Deadline.after(60)
        while True:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/v2/", timeout=5).close()
                break
            except OSError:
                assert not deadline.passed, api.logs(container)
                time.sleep(0.1)
        yield Registry(f"localhost:{port}", f"{network['IPAddress']}:5000", engine, container)
    finally:
        api.remove_container(container, force=True, v=True)
