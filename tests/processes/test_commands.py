"""Commands as programs: `qcase cache`, `explain` and `doctor` in processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from qcase.guests import alpine, guest
from qcase.store.content import Kind
from qcase.store.store import Store
from tests.unit.cli.test_doctor import programs as programs
from tests.unit.cli.test_doctor import workspace as workspace
from tests.unit.prepare.test_explain import ENVIRONMENT, prepared
from tests.unit.prepare.test_explain import root as root
from tests.unit.prepare.test_explain import store as store
from tests.unit.store.test_collect import DAY, key, put


def test_the_store_is_listed_collected_verified_and_cleared(tmp_path: Path) -> None:
    root = tmp_path / "cache"

    def qcase(*argv: str) -> tuple[int, str]:
        command = [str(Path(sys.executable).with_name("qcase")), *argv, "--cache-dir", str(root)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    path = put(root, "a", used=DAY)
    put(root, "b", used=0, kind=Kind.OVERLAY)
    assert qcase("cache", "path") == (0, f"{root}\n")
    assert qcase("cache", "list")[1].count("\n") == 2
    assert qcase("cache", "gc", "--dry-run", "--max-size", "0 B", "--min-free", "0 B")[1].count("would go: ") == 2
    assert qcase("cache", "gc", "--max-size", "20") == (
        2,
        "error: --max-size: '20' is no size\nhint: write a number and its unit: \"10 GiB\"\n",
    )
    (tmp_path / "qcase.toml").write_text('[cache]\nmax_size = "1 kB"\n')
    assert "normal/a x86_64: the store is too big" in qcase("cache", "gc", "--dry-run")[1]
    (tmp_path / "qcase.toml").unlink()
    assert qcase("cache", "gc", "--max-age", "12h")[1].startswith(
        f"gone: image {key('a').short}, 1.0 MiB, normal/a x86_64: not used"
    )
    assert not path.exists()
    (Store(root).folder(Kind.OVERLAY, key("b").digest) / "content" / "data").write_bytes(b"x")
    assert qcase("cache", "verify")[0] == 1
    assert qcase("cache", "verify", "--repair")[0] == 0
    assert qcase("cache", "verify") == (0, "0 whole, 0 broken\n")
    assert qcase("cache", "clear")[0] == 0


def test_explain_writes_nothing(root: Path, store: Store, tmp_path: Path) -> None:
    prepared(root, store, "shell", tmp_path)
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in store.root.rglob("*"))
    command = [str(Path(sys.executable).with_name("qcase")), "explain", "shell", "-w", str(root), "--cache-dir", str(store.root)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
    assert done.returncode == 0, done.stderr
    assert re.findall(r": (hit|miss), key", done.stdout) == ["hit", "hit"]
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in store.root.rglob("*")) == before
    unknown = subprocess.run([*command[:2], "nothing", *command[3:]], capture_output=True, text=True)
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: ")


def doctor(workspace: Path, *arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    qcase = Path(sys.executable).with_name("qcase")
    return subprocess.run([qcase, "doctor", "-w", workspace, *arguments], capture_output=True, text=True, env=env, timeout=120)


def test_doctor_says_whether_a_run_would_work(workspace: Path, programs: Path, tmp_path: Path) -> None:
    env = {"PATH": str(programs), "HOME": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/nobody"}
    done = doctor(workspace, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("qcase run --arch x86_64 would work\n")
    assert "\x1b" not in done.stdout
    (programs / "qemu-system-x86_64").unlink()
    done = doctor(workspace, "--json", env=env)
    assert done.returncode == 3
    said: dict[str, Any] = json.loads(done.stdout)
    assert (said["works"], said["arch"], said["format"]) == (False, "x86_64", 1)
    assert {line["what"] for line in said["lines"] if line["state"] == "bad"} == {"qemu x86_64"}
    assert doctor(workspace, env=env).stdout.endswith("would not work: qemu x86_64\n")
    assert os.listdir(tmp_path / "w") == os.listdir(workspace)  # noqa: PTH208


def test_the_package_index_is_really_asked(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guest.obstacle(alpine.ALPINE, Arch.AARCH64, tmp_path) is None
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert guest.obstacle(alpine.ALPINE, Arch.AARCH64, tmp_path) is not None


def test_a_pipe_that_nobody_reads_is_no_error_of_the_infrastructure(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [str(Path(sys.executable).with_name("qcase")), "schema", "qemu", "--toml"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("option", ["--json", "--events", "--junit", "--html"])
def test_a_report_on_standard_output_is_alone_there(option: str, tmp_path: Path) -> None:
    (tmp_path / "suite/normal/wrong").mkdir(parents=True)
    (tmp_path / "suite/normal/wrong/qemu-x86_64.toml").write_text("args = 7\n")
    (tmp_path / "qcase.toml").write_text('[suite]\nname = "x"\nroot = "suite"\n')
    command = [str(Path(sys.executable).with_name("qcase")), "run", "--cache-dir", str(tmp_path / "store")]
    done = subprocess.run([*command, option, "-"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "normal/wrong" in done.stderr
    assert "1 case in" in done.stderr
    beside = subprocess.run([*command, option, "report"], capture_output=True, text=True, cwd=tmp_path)
    assert re.sub(r"\d\S* s", "", beside.stdout) == re.sub(r"\d\S* s", "", done.stderr)
    begins = {"--json": "{\n", "--events": '{"event":', "--junit": "<testsuites", "--html": "<!doctype html>"}
    assert done.stdout.startswith(begins[option])
    assert (tmp_path / "report").read_text()[:12] == done.stdout[:12]
    assert not (tmp_path / "-").exists()
    other = "--json" if option != "--json" else "--html"
    done = subprocess.run([*command, option, "-", other, "-"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "standard output takes one report" in done.stderr
