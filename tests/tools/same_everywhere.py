"""The same suite here and elsewhere: compares two stores, entry by entry.

`python -m tests.tools.same_everywhere [CASE…]`: the examples here and in the image `qcase`, which `make image` makes, as a table.
Status 1 if any differs. Packages come from where the environment says: `eval "$(python -m tests.packages)"`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHES = ("x86_64", "aarch64")
IMAGE = "qcase:latest"


@dataclass(frozen=True)
class Row:
    """One entry: its key, and the sha256 of what it holds, in either store; empty where it is not."""

    made_for: str
    kind: str
    key: str
    here: str
    there: str


def entries(store: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """By kind and key: for whom it was made, and its sha256: of every byte of an image, of an overlay's listing and contents."""
    found = {}
    for manifest in sorted(store.glob("v2/*/*/*/manifest.json")):
        kind = {"overlays": "overlay", "images": "image", "downloads": "download"}[manifest.parent.parent.parent.name]
        stored = json.loads(manifest.read_bytes())
        digest = str(stored["digest"])
        if kind == "image":
            with (manifest.parent / "image.img").open("rb") as image:
                digest = hashlib.file_digest(image, "sha256").hexdigest()
        found[kind, manifest.parent.name] = (str(stored.get("made_for", "")), digest)
    return found


def copy(source: Path, target: Path) -> None:
    """A folder with large files that are mostly holes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        subprocess.run(["cp", "-r", "--sparse=always", "--reflink=auto", str(source), str(target)], check=True)


def compared(here: Path, there: Path) -> list[Row]:
    return rows_of(entries(here), entries(there))


def rows_of(ours: Mapping[tuple[str, str], tuple[str, str]], theirs: Mapping[tuple[str, str], tuple[str, str]]) -> list[Row]:
    rows = []
    for kind, key in sorted({*ours, *theirs}, key=lambda one: (ours.get(one) or theirs[one])[0]):
        made_for, digest = ours.get((kind, key), ("", ""))
        other, their_digest = theirs.get((kind, key), ("", ""))
        rows.append(Row(made_for or other, kind, key, digest, their_digest))
    return rows


def table(rows: list[Row]) -> str:
    lines = ["| made for | | key | sha256 here | sha256 there | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        same = "same" if row.here == row.there else "DIFFERENT"
        lines.append(f"| {row.made_for} | {row.kind} | `{row.key[:12]}` | `{row.here[:12]}` | `{row.there[:12]}` | {same} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--entries"]:  # of a store on another machine, for `tests.tools.fresh`
        print(json.dumps([[*key, *value] for key, value in entries(Path(sys.argv[2])).items()]))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # so that the stores go
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode != 0:
        sys.exit(f"there is no image {IMAGE}: `make image` makes it")
    with tempfile.TemporaryDirectory(prefix="qcase-same-") as folder:
        here, there, suite = (Path(folder) / name for name in ("here", "there", "suite"))
        shutil.copytree(ROOT / "examples" / "linux", suite, ignore=shutil.ignore_patterns("target"))
        known = Path.home() / ".cache" / "qcase"
        for store in (here, there):
            for name in ("guests", "images"):
                copy(known / name, store / name)
        for arch in ARCHES:
            argv = [str(Path(sys.executable).with_name("qcase")), "run", "--workspace", str(suite), "--arch", arch]
            argv += ["--cache-dir", str(here), *sys.argv[1:]]
            print(f"here, {arch}: status {subprocess.run(argv, check=False).returncode}", flush=True)
            shutil.rmtree(suite / "target", ignore_errors=True)
            argv = ["docker", "run", "--rm", "-v", "/var/run/docker.sock:/var/run/docker.sock", "-v", f"{suite}:/w"]
            argv += ["-v", f"{there}:/cache", "--user", f"{os.getuid()}:{os.getgid()}"]
            for name in ("QCASE_PACKAGE_REPOSITORIES", "QCASE_PACKAGE_KEYS"):  # folders, and files in them: see tests.packages
                if place := os.environ.get(name):
                    argv += ["-v", f"{place}:{place}:ro", "-e", name]
            if bundle := os.environ.get("SSL_CERT_FILE"):  # where this machine's network has an authority of its own
                argv += ["-v", f"{bundle}:/etc/ssl/certs/ca-certificates.crt:ro"]
            argv += [IMAGE, "run", "--arch", arch]
            argv += sys.argv[1:]
            print(f"there, {arch}: status {subprocess.run(argv, check=False).returncode}", flush=True)
        rows = compared(here, there)
        print(table(rows))
        different = [row for row in rows if row.here != row.there]
        print(f"{len(rows)} entries, {len(different)} different")
        sys.exit(bool(different))


if __name__ == "__main__":
    main()
