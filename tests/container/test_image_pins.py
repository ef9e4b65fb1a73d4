"""`qcase images lock`: which lock it writes, and that `--locked` goes by it. The image is the one that is made soonest."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.cli import doctor
from qcase.cli.doctor_lines import State
from qcase.config import image_lock
from qcase.containers.engine import Engine
from qcase.host import process
from qcase.host.process import Completed
from qcase.toolchains import images

pytestmark = pytest.mark.container


@pytest.fixture
def workspace(tmp_path: Path, test_cache: Path, shared_engine: Engine) -> Path:
    images.ensure("alpine", shared_engine, test_cache)
    folder = tmp_path / "workspace"
    folder.mkdir()
    case = folder / "suite/normal/script"
    (case / "sh").mkdir(parents=True)
    (case / "sh/run").write_text("echo ok\n")
    (case / "qemu-x86_64.toml").write_text(
        'args = []\nshell_prefix = "#"\nshell_init_cmd = "run"\nsuccess_regex = ["ok"]\n[qcase]\npackages = ["zlib"]\n'
    )
    (folder / "qcase.toml").write_text('[suite]\nroot = "suite"\n')
    return folder


def qcase(workspace: Path, cache: Path, *words: str) -> Completed:
    argv = [str(Path(sys.executable).with_name("qcase")), *words]
    return process.run(argv, cwd=workspace, env={"QCASE_CACHE_DIR": str(cache)}, allow=("*",), timeout=300, check=False)


def test_a_workspace_gets_a_lock_of_its_own_which_counts_from_then_on(workspace: Path, test_cache: Path) -> None:
    own = workspace / image_lock.FILE
    done = qcase(workspace, test_cache, "images", "lock", "alpine", "--own")
    assert done.returncode == 0, done.output
    assert f"written: {own}" in done.output
    assert "warning" not in done.output
    lock = image_lock.read(own, own=True)
    assert list(lock.pins) == ["alpine"]
    assert lock.snapshot == ""  # nothing of Debian is in it
    verified = qcase(workspace, test_cache, "images", "verify", "alpine")
    assert (verified.returncode, verified.output) == (0, "alpine: as pinned")

    # From now on it is the one that is read, and the one that is written.
    text = own.read_text()
    pin = lock.pins["alpine"]
    own_list = tuple(line.replace("busybox x86_64 ", "busybox x86_64 0.") for line in pin.packages)
    image_lock.write(image_lock.Lock(own, {"alpine": image_lock.Pin("alpine", pin.recipe, pin.base, own_list)}))
    refused = qcase(workspace, test_cache, "images", "verify", "alpine")
    assert refused.returncode == 1
    assert "busybox:x86_64 is " in refused.output
    listed = qcase(workspace, test_cache, "images", "list")
    assert "packages, not as pinned" in next(line for line in listed.output.splitlines() if line.startswith("alpine"))
    lines = {line.what: line for line in doctor.examine(workspace, Arch.X86_64, test_cache)}
    line = lines["image alpine"]
    assert line.state is State.WARNING
    assert "not as qcase-images.lock pins it: busybox:x86_64 is " in line.says
    assert line.hint == "`qcase images lock alpine` pins what is here"
    assert "names no snapshot" in lines["pin"].says
    again = qcase(workspace, test_cache, "images", "lock", "alpine")
    assert "alpine: 1 changes" in again.output
    assert own.read_text() == text


def test_outside_of_a_workspace_the_lock_of_qcase_is_read(tmp_path: Path, test_cache: Path, workspace: Path) -> None:
    shutil.rmtree(workspace)
    done = qcase(tmp_path, test_cache, "images", "verify", "alpine")
    assert (done.returncode, done.output) == (0, "alpine: as pinned")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lock", "--snapshot", "yesterday"], "is no time of the form 20261122T120000Z"),
        (["lock", "--snapshot", "20261399T120000Z"], "there is no such day or hour"),
        (["lock", "c", "--snapshot", "20261122T120000Z"], "a lock has one snapshot, for all images"),
        (["lock", "--own"], "there is no workspace here"),
    ],
)
def test_what_cannot_be_pinned(tmp_path: Path, words: list[str], said: str) -> None:
    done = qcase(tmp_path, tmp_path / "store", "images", *words)
    assert done.returncode == 2, done.output
    assert said in done.output
    assert list(tmp_path.iterdir()) == []
