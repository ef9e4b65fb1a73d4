"""What a guest reaches, by case and by run, and that runs side by side do not get into each other's way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from tests import kernel
from tests.vm import workspaces
from tests.vm.workspaces import Workspace

pytestmark = pytest.mark.vm


@contextmanager
def answering() -> Iterator[int]:
    """A port of the host's loopback on which somebody says a word to whoever comes. To a guest the host is 10.0.2.2."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    came, _ = server.accept()
                except OSError:
                    return
                with came:
                    came.sendall(b"greetings\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_the_policies_of_cases_and_of_the_run_in_two_runs_side_by_side(test_cache: Path, tmp_path: Path) -> None:
    made = Workspace.make(tmp_path / "w", '[run]\nnetwork = "user"\n')
    with answering() as port:
        ask = f"nc -w 5 10.0.2.2 {port} </dev/null || echo cut off"
        made.case("by-the-run", shell_init_cmd=ask, success_regex=["^greetings"], fail_regex=["^cut off"])
        restricted = {"network": "restricted"}
        made.case("restricted", shell_init_cmd=ask, success_regex=["^cut off"], fail_regex=["^greetings"], qcase=restricted)
        # Each card of a case's own, in another spelling, is cut off likewise.
        for name, card in {
            "nic": ["-nic", "user,model=virtio-net-pci"],
            "net": ["--net", "nic,model=virtio-net-pci", "-net", "user"],
        }.items():
            args = [*workspaces.ARGS[Arch.AARCH64], *card]
            made.case(
                name, args=args, shell_init_cmd=ask, success_regex=["^cut off"], fail_regex=["^greetings"], qcase=restricted
            )
        alone = "ls /sys/class/net; echo that is all"
        made.case("none", shell_init_cmd=alone, success_regex=["^that is all"], fail_regex=["eth0"], qcase={"network": "none"})
        # A card without a cable: it sends, nothing is reached, and the kernel finds no fault in it.
        args = [*workspaces.ARGS[Arch.AARCH64], "-nic", "user,model=virtio-net-pci"]
        without = {"network": "none", "kernel_trouble": "fail"}
        alone_with: dict[str, Any] = {"success_regex": ["^cut off"], "fail_regex": ["^greetings", "NETDEV"], "qcase": without}
        slow = f"ls -d /sys/class/net/eth0; nc -w 12 10.0.2.2 {port} </dev/null || echo cut off"
        made.case("no-cable", args=args, shell_init_cmd=slow, **alone_with)
        store = workspaces.fresh_store(tmp_path / "store", test_cache)
        both = [workspaces.start(made, store=store) for _ in range(2)]
        for running in both:
            outcome = running.outcome()
            assert set(outcome.verdicts.values()) == {"pass"}, outcome.said


def test_a_port_of_the_host_that_is_taken_is_said_to_be(kernels: Mapping[Arch, Path], tmp_path: Path) -> None:
    made = kernel.workspace(tmp_path / "w", kernels)
    with answering() as port:
        forward = ["-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=net0"]
        table = {"network": "restricted"}
        kernel.case(made, "forwards", "pass", args=[*kernel.ARGS[Arch.AARCH64], *forward], qcase=table)
        outcome = workspaces.run(made, store=tmp_path / "store")
        assert outcome.verdicts == {"forwards": "error"}
        assert outcome.exit_code == 3
        reason = outcome.case("forwards")["reason"]
        assert "Could not set up host forwarding rule" in reason
        assert "hint: that port of this machine is taken, perhaps by another run of the same case" in reason
    free = workspaces.run(made, store=tmp_path / "store")
    assert free.verdicts == {"forwards": "pass"}
