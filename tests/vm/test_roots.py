"""Cases that bring a root filesystem of their own: it is booted, with the case's files in it, and never written."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from qcase.guests import guest
from tests.vm import workspaces
from tests.vm.workspaces import Workspace

pytestmark = pytest.mark.vm


def test_a_root_filesystem_of_a_cases_own(test_cache: Path, tmp_path: Path) -> None:
    made = Workspace.make(tmp_path / "w")
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    own = made.root / "old.img"
    base = guest.alpine_guest(Arch.AARCH64, test_cache, emit=lambda _: None).rootfs
    shutil.copyfile(base, own)
    own.chmod(0o644)
    with own.open("r+b") as file:  # the same filesystem by another name: 16 bytes behind the superblock's 0x78
        file.seek(1024 + 0x78)
        file.write(b"its-own\0".ljust(16, b"\0"))
    before = hashlib.sha256(own.read_bytes()).hexdigest()
    args = workspaces.ARGS[Arch.AARCH64]
    label = "dd if=/dev/vda bs=1 skip=1144 count=7 2>/dev/null; echo; t-version"
    said: dict[str, Any] = {"shell_init_cmd": label, "success_regex": ["^its-own$"], "fail_regex": ["^FAIL"]}
    version = {"sh/t-version": "#!/bin/sh\necho version one\n"}
    # Options in another order than axbuild's, and a case that would have the guest write into the file.
    drive = ["-drive", "if=none,id=disk0,format=raw,file=${workspace}/old.img"]
    made.case("stale", {"sh/t-version": "#!/bin/sh\necho FAIL: edited\n"}, args=[*args, *drive], **said)
    made.case("own", version, args=[*args, *drive], **said)
    writes = "echo x >/root/persist; sync; sync; echo d''one"
    made.case("writes", args=[*args, drive[0], f"{drive[1]},snapshot=off"], shell_init_cmd=writes, success_regex=["^done$"])
    unknown = ["-drive", "if=none,id=disk0,file=rootfs-aarch64-debian.img"]
    made.case("unknown", args=[*args, *unknown], **said)
    outcome = workspaces.run(made, store=store)
    assert outcome.verdicts == {"stale": "fail", "own": "pass", "writes": "pass", "unknown": "error"}, outcome.said
    assert "nothing says what stands in for it" in outcome.case("unknown")["reason"]
    assert outcome.case("unknown")["fault"] == "config"
    assert hashlib.sha256(own.read_bytes()).hexdigest() == before
