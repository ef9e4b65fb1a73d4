"""Cases that mean harm: what a build tries is held by its container, said, and leaves nothing behind. The others go on.

`tests/container/` tests one by one how a step is confined; here it is `qcase run`, from the workspace to the exit code.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qcase.containers.connection import socket_path
from qcase.containers.engine import Engine
from tests.vm.workspaces import Outcome, Workspace, c_program, fresh_store, run, says, start

pytestmark = [pytest.mark.vm, pytest.mark.container]

# Tries one thing after the other, and writes down what it could do: a line for each. `bash` opens sockets without any tool.
PREBUILD = r"""
exec bash -u - <<'EOF'
report=$QCASE_CASE_OVERLAY_DIR/report
mkdir -p "$report"
could() { echo "$1" >>"$report/could"; }
try() { what=$1; shift; if "$@" 2>/dev/null; then could "$what"; fi; }

# Writes outside. (/dev is the container's own, in memory; the staging root is a copy for this build.)
touch /qcase/staging/tampered /qcase/staging/etc/tampered 2>/dev/null
for place in / /etc /usr/bin /opt/qcase /root /home /var /qcase /proc/sys/kernel /sys; do
    try "write $place" touch "$place/planted"
done
try "write over the toolchain" sh -c 'echo >>/usr/local/bin/x86_64-linux-musl-gcc'
try "mount" mount -t tmpfs none /tmp
try "remount" mount -o remount,rw /
try "become root" sh -c 'chown 0:0 "$0" && chmod 4755 "$0" && [ "$(id -u)" = 0 ]' /tmp/planted
try "hostname" hostname planted
[ "$(sed -n 's/^CapEff:\t0*//p' /proc/self/status)" = "" ] || could capabilities
[ "$(sed -n 's/^NoNewPrivs:\t//p' /proc/self/status)" = 1 ] || could "new privileges"

# Sockets: the machine, the engine's bridge, the world, names.
for place in 127.0.0.1 HOST 192.0.2.1; do try "connect to $place" timeout 2 bash -c ": >/dev/tcp/$place/PORT"; done
try "resolve a name" timeout 5 getent hosts example.org
[ "$(ls /sys/class/net)" = lo ] || could "see a network: $(ls /sys/class/net)"
try "listen where others see it" sh -c 'ip addr 2>/dev/null | grep -v " lo" | grep -q "inet "'

# The environment, of this process and of all it can see.
cat /proc/*/environ 2>/dev/null | tr '\0' '\n' | sort -u >"$report/environment"
env >>"$report/environment"

# The engine.
find / -xdev -type s 2>/dev/null | while read -r path; do could "find the socket $path"; done
for path in /var/run/docker.sock /run/docker.sock SOCKET; do [ ! -e "$path" ] || could "see $path"; done

# Other processes, and devices.
[ "$(ls -d /proc/[0-9]* | wc -l)" -lt 20 ] || could "see the machine's processes"
for device in "b 254 0" "c 1 1" "c 1 3"; do try "make the device $device" mknod "$report/device" $device; done
for device in /dev/sda /dev/vda /dev/mem /dev/kmsg /dev/kvm; do try "open $device" head -c 1 "$device"; done

# Links that point out of where they are.
mkdir -p "$QCASE_CASE_OVERLAY_DIR/planted"
ln -s CANARY "$QCASE_CASE_OVERLAY_DIR/planted/absolute"
ln -s ../../../../../../../../../../CANARY "$QCASE_CASE_OVERLAY_DIR/planted/relative"
ln -s /proc/self/cwd "$QCASE_CASE_OVERLAY_DIR/planted/cwd"
ln -s / "$QCASE_CASE_OVERLAY_DIR/planted/root"
# … and one in the sources, through which the build itself would write.
ln -s CANARY "$QCASE_CASE_C_DIR/through"
try "write through a link" sh -c 'echo planted >"$QCASE_CASE_C_DIR/through"'

# Something that would go on after the end.
setsid sh -c 'sleep 300; touch "$QCASE_CASE_OVERLAY_DIR/late"' >/dev/null 2>&1 &
exit 0
EOF
"""

FORKS = "while :; do sleep 1000 & done\n"
DEVICES = "mkfifo $QCASE_CASE_OVERLAY_DIR/pipe\n"
FILLS = """
exec >/dev/null 2>&1
for n in $(seq 1000); do head -c 4000000 /dev/zero >>$QCASE_CASE_WORK_DIR/much; sleep 0.05; done
"""


@contextmanager
def listener() -> Iterator[tuple[int, list[str]]]:
    """A server on all addresses of this machine: its port, and who came."""
    came: list[str] = []
    with socket.create_server(("0.0.0.0", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, address = server.accept()
                except OSError:
                    return
                came.append(str(address))
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], came
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def bridge(engine: Engine) -> str:
    """This machine's address on the engine's bridge, as a container would reach it."""
    (config,) = engine.api.inspect_network("bridge")["IPAM"]["Config"]
    return str(config.get("Gateway") or config["Subnet"].replace(".0/16", ".1"))


def test_hostile_cases(tmp_path: Path, test_cache: Path, shared_engine: Engine) -> None:
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    secret = uuid.uuid4().hex
    workspace = Workspace.make(tmp_path / "w")
    keys: dict[str, Any] = {"shell_init_cmd": "prog", "success_regex": ["^fine$"]}
    with listener() as (port, came):
        words = {"PORT": str(port), "HOST": bridge(shared_engine), "CANARY": str(canary), "SOCKET": socket_path(os.environ)}
        prebuild = PREBUILD
        for word, value in words.items():
            prebuild = prebuild.replace(word, value)
        looks = "cat /report/could 2>/dev/null; ls /planted; head -c 9 /planted/absolute; prog"
        workspace.case("tries", c_program(says("fine"), prebuild_sh=prebuild), **{**keys, "shell_init_cmd": looks})
        workspace.case("forks", c_program(says("fine"), prebuild_sh=FORKS), **keys)
        workspace.case("devices", c_program(says("fine"), prebuild_sh=DEVICES), **keys)
        workspace.case("good", c_program(says("fine")), **keys)
        store = fresh_store(tmp_path / "store", test_cache)
        running = start(workspace, store=store, env={"QCASE_SECRET": secret, "AWS_SECRET_ACCESS_KEY": secret})
        outcome = running.outcome(600)
    assert outcome.verdicts == {
        "tries": "pass",
        "forks": "build-error",
        "devices": "build-error",
        "good": "pass",
    }
    assert outcome.exit_code == 1

    # Contained: it could do nothing, and nobody heard of it.
    (report,) = store.glob("v2/overlays/*/*/content/report")
    assert not (report / "could").exists(), (report / "could").read_text()
    assert came == []
    environment = (report / "environment").read_text()
    assert secret not in environment
    assert "QCASE_CASE_OVERLAY_DIR=/qcase/overlay" in environment
    assert str(tmp_path) not in environment
    assert canary.read_text() == "untouched"
    planted = report.parent / "planted"
    assert {path.name: str(path.readlink()) for path in planted.iterdir()} == {
        "absolute": str(canary),
        "relative": "../" * 9 + ".." + str(canary),
        "cwd": "/proc/self/cwd",
        "root": "/",
    }
    console = (workspace.root / "target/qcase/logs/aarch64/normal/tries/console.log").read_text(errors="replace")
    assert "untouched" not in console
    assert not list(store.rglob("late"))

    # Said.
    assert "processes that it may have" in reason(outcome, "forks")
    assert "pipe" in reason(outcome, "devices")

    # Gone; and what is stored for all is as it was.
    assert not list(store.rglob("tampered"))
    assert workspace.run_folders == []
    found = shared_engine.api.containers(all=True, filters={"label": "qcase.run"})
    assert [one["Id"] for one in found if one["Labels"]["qcase.run"].startswith(f"{running.pid}-")] == []
    assert running.run_id is None  # no process has its mark


def reason(outcome: Outcome, case: str) -> str:
    return str(outcome.case(case)["reason"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk that the engine sees, too")
def test_a_build_that_fills_the_disk(tmp_path: Path, test_cache: Path, shared_engine: Engine) -> None:
    """It is stopped, said, and cleared away; what was built from the same disk before and after it is not the worse for it."""
    workspace = Workspace.make(tmp_path / "w")
    disk = workspace.root / "target"
    disk.mkdir()
    keys: dict[str, Any] = {"shell_init_cmd": "prog", "success_regex": ["^fine$"]}
    workspace.case("a-fills", c_program(says("fine"), prebuild_sh=FILLS), **keys)
    workspace.case("good", c_program(says("fine")), **keys)
    store = fresh_store(tmp_path / "store", test_cache)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "qcase-test", str(disk)], check=True)
    try:
        outcome = run(workspace, store=store)
        assert outcome.verdicts == {"a-fills": "build-error", "good": "pass"}
        assert "filled the disk" in reason(outcome, "a-fills")
        assert workspace.run_folders == []
        assert sum(path.stat().st_size for path in disk.rglob("*") if path.is_file()) < 10 << 20
    finally:
        subprocess.run(["umount", str(disk)], check=True)
