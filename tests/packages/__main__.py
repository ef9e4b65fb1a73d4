"""See `tests.packages`: what `make demo` gets its packages from."""

from __future__ import annotations

import os
import shlex
import sys
import urllib.request
from pathlib import Path

from qcase.arch import Arch
from qcase.containers.engine import Engine
from qcase.disk.ext4 import Ext4Image
from qcase.errors import QcaseError
from qcase.events import Event, Progress
from qcase.guests import guest
from qcase.guests.packages.repositories import REPOSITORIES_VARIABLE
from qcase.host import process
from tests import packages

PATIENCE = 5.0  # seconds for a repository's answer


def say(event: Event) -> None:
    if isinstance(event, Progress):
        print(event.message, file=sys.stderr, flush=True)


def answers(rootfs: Path) -> bool:
    """Whether the repositories of an image answer."""
    with Ext4Image.open(rootfs) as image:
        node = image.lookup("/etc/apk/repositories")
        lines = image.read(node).decode().splitlines() if node is not None else []
    addresses = [line for line in lines if line.startswith(("https://", "http://"))]
    try:
        for address in addresses:
            index = urllib.request.Request(f"{address}/{Arch.X86_64}/APKINDEX.tar.gz", method="HEAD")
            urllib.request.urlopen(index, timeout=PATIENCE).close()
    except OSError:
        return False
    return bool(addresses)


def main() -> int:
    if os.environ.get(REPOSITORIES_VARIABLE):
        return 0
    cache = Path(os.environ.get("QCASE_TEST_CACHE") or Path.home() / ".cache" / "qcase-tests")
    cache.mkdir(parents=True, exist_ok=True)
    try:
        if answers(guest.alpine_guest(Arch.X86_64, cache, emit=say).rootfs):
            return 0
        with Engine.connect() as engine:
            made = packages.provide(engine, cache, say)
    except QcaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        process.dismiss_guardian()
    for name, value in made.environment.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
