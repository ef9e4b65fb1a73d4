"""From an empty folder to cases that pass, with what `qcase init` and `qcase new` write."""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.vm import workspaces
from tests.vm.workspaces import QCASE, run

pytestmark = pytest.mark.vm


def qcase(folder: Path, *arguments: str) -> str:
    done = subprocess.run([QCASE, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_init_and_new_write_passes(tmp_path: Path, test_cache: Path) -> None:
    folder = tmp_path / "kernel"
    folder.mkdir()
    subprocess.run(["git", "init", "-q", folder], check=True)
    assert "qcase run hello" in qcase(folder, "init")
    for pipeline in ("sh", "c", "grouped"):
        qcase(folder, "new", f"new/{pipeline}-case", "--pipeline", pipeline)
    qcase(folder, "new", "new/steps-case", "--pipeline", "sh", "--steps")
    outcome = run(folder, store=workspaces.fresh_store(tmp_path / "store", test_cache))
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert sorted(changed.split()[1::2]) == [".gitignore", "qcase.toml", "suite/"]
    assert outcome.verdicts == {
        "hello": "pass",
        "new/c-case": "pass",
        "new/grouped-case": "pass",
        "new/sh-case": "pass",
        "new/steps-case": "pass",
    }, outcome.said
    assert outcome.exit_code == 0


def test_the_tree_of_a_kernel_that_uses_axbuild_runs_with_what_init_proposes(tmp_path: Path, test_cache: Path) -> None:
    """Hostname, markers and variables are those that axbuild has built in for this kernel; no file of the suite is edited."""
    folder = tmp_path / "kernel"
    base = folder / "test-suit" / "starryos" / "normal" / "qemu-smp1"
    files = {
        "build-aarch64-unknown-none-softfloat.toml": "",
        "smoke/qemu-aarch64.toml": """\
            args = ["-nographic", "-cpu", "cortex-a72", "-m", "256M", "-device", "virtio-blk-pci,drive=disk0",
                    "-drive", "id=disk0,if=none,format=raw,file=${workspace}/target/rootfs-aarch64.img"]
            uefi = false
            to_bin = false
            shell_prefix = "root@starry:"
            shell_init_cmd = 'echo "All tests passed"'
            success_regex = ['(?m)^All tests passed!?\\s*$']
            fail_regex = ['(?i)\\bpanic(?:ked)?\\b']
            timeout = 120
            """,
        "group/qemu-aarch64.toml": """\
            args = ["-nographic", "-cpu", "cortex-a72", "-m", "256M"]
            shell_prefix = "root@starry:"
            test_commands = ["/usr/bin/one", "two"]
            success_regex = ['(?m)^STARRY_GROUPED_TESTS_PASSED\\s*$']
            fail_regex = ["(?m)^STARRY_GROUPED_TEST_FAILED:"]
            timeout = 120
            """,
        "group/one/sh/one": "#!/bin/sh\nexit 0\n",
        "group/two/c/CMakeLists.txt": workspaces.c_program("", "two")["c/CMakeLists.txt"],
        "group/two/c/main.c": '#include "made.h"\nint main(void) { return MADE; }\n',
        "group/two/c/prebuild.sh": 'test -d "$STARRY_STAGING_ROOT/etc"\necho "#define MADE 0" >"$STARRY_CASE_C_DIR/made.h"\n',
    }
    for path, text in files.items():
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_text(textwrap.dedent(text))
    said = qcase(folder, "init")
    assert "2 cases: 1 plain, 1 grouped" in said
    assert "hostname = starry" in said
    outcome = run(folder, store=workspaces.fresh_store(tmp_path / "store", test_cache))
    assert outcome.verdicts == {"qemu-smp1/group": "pass", "qemu-smp1/smoke": "pass"}, outcome.said
