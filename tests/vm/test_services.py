"""Services of the host, reached from a real guest whose network stays restricted."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from qcase.arch import Arch
from tests.vm import workspaces
from tests.vm.workspaces import Workspace

pytestmark = pytest.mark.vm

PORT = 18080
MD5 = hashlib.md5(b"b" * 1_000_000, usedforsecurity=False).hexdigest()
ASK = f"wget -q -O - http://10.0.2.2:{PORT}/any"


def with_table(case: Path, table: str) -> None:
    for file in case.glob("qemu-*.toml"):
        file.write_text(f"{file.read_text()}{table}")


def test_all_services_under_a_restricted_network_in_cases_side_by_side(test_cache: Path, tmp_path: Path) -> None:
    made = Workspace.make(tmp_path / "w")
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    served = made.root / "served" / "below"
    served.mkdir(parents=True)
    (served / "a file").write_text("in a folder\n")
    (served / "out").symlink_to("/etc/hostname")
    (made.root / "served" / "boot.cfg").write_text("by tftp\n")
    several = f"(for i in 1 2 3; do {ASK} & done; wait; {ASK}; {ASK}) | uniq -c"
    lines = [
        several,
        'wget -q -O - "http://10.0.2.2:81/below/a%20file"',
        "wget -q -O - http://10.0.2.2:81/below/out || echo no li''nk",
        "echo to the host >/tmp/f; wget -q -O - --post-file=/tmp/f http://10.0.2.2:82/a.txt",
        "wget -q -O - --post-file=/tmp/f http://10.0.2.2:82/..%2fb || echo no na''me",
        "echo back | nc -w 20 10.0.2.2 7 | sed s/back/forth/",
        "wget -q -O - http://10.0.2.2:83/ | md5sum",
        r"printf '\0\1boot.cfg\0octet\0' | nc -u -w 3 10.0.2.4 69 | tail -c 8",
        f"nc -w 3 10.0.2.2 {PORT + 1} </dev/null; nc -w 3 10.0.2.4 22 </dev/null; nc -w 3 10.0.2.3 53 </dev/null || echo shu''t",
        "wc -c </etc/resolv.conf; echo all do''ne",
    ]
    more = """
        [host_http_server]
        bind = "127.0.0.1"
        port = 18080
        body = "greetings\\n"
        [[qcase.services]]
        kind = "http"
        port = 81
        folder = "served"
        [[qcase.services]]
        kind = "drop"
        port = 82
        limit = "1 MB"
        [[qcase.services]]
        kind = "echo"
        port = 7
        [[qcase.services]]
        kind = "http"
        port = 83
        body_size = 1000000
        body_byte = 98
        [[qcase.services]]
        kind = "tftp"
        folder = "served"
        """
    printed = ["in a folder", "no link", "kept", "no name", "forth", f"{MD5}  -", "by tftp", "shut", "0", "all done"]
    patterns = ["^ +5 greetings$", *(f"^{line}$" for line in printed)]
    keys: dict[str, Any] = {"shell_init_cmd": "; ".join(lines), "success_regex": patterns, "qcase": {"match": "all"}}
    for name in ("one", "two"):
        with_table(made.case(name, **keys), more)
    outcome = workspaces.run(made, "-j", "2", store=store)
    logs = made.root / "target/qcase/logs/aarch64/normal"
    assert outcome.verdicts == {"one": "pass", "two": "pass"}, (logs / "one" / "console.log").read_text(errors="replace")
    for name in ("one", "two"):
        assert (logs / name / "dropped-a.txt").read_text() == "to the host\n"
        said = (logs / name / "services.log").read_text()
        assert f"{PORT}: GET /any HTTP/1.1 -> 200" in said
        assert "restrict=on" in (logs / name / "qemu.sh").read_text()


def test_nothing_of_a_service_outlives_a_qcase_that_is_killed(test_cache: Path, tmp_path: Path) -> None:
    made = Workspace.make(tmp_path / "w")
    temporary = tmp_path / "t"
    temporary.mkdir()
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    with_table(
        made.case("open", shell_init_cmd="nc 10.0.2.2 7", success_regex=["^never"]),
        '[[qcase.services]]\nkind = "echo"\nport = 7\n',
    )
    running = workspaces.start(made, store=store, env={"TMPDIR": str(temporary)})
    workspaces.eventually("QEMU runs", lambda: running.run_id and workspaces.qemu_of(running.run_id))
    mark = running.run_id
    assert mark is not None
    assert [path for path in temporary.iterdir() if path.name.startswith("qcase-services-")]
    os.kill(running.pid, signal.SIGKILL)
    workspaces.eventually("all is gone", lambda: not workspaces.marked_processes(mark) and not [*temporary.glob("qcase-*")])
    running.outcome()


def test_a_restricted_guest_has_no_name_server_and_a_free_one_has(test_cache: Path, tmp_path: Path) -> None:
    made = Workspace.make(tmp_path / "w")
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    made.case("free", shell_init_cmd="cat /etc/resolv.conf", success_regex=["^nameserver 10.0.2.3$"], qcase={"network": "user"})
    outcome = workspaces.run(made, store=store)
    assert outcome.verdicts == {"free": "pass"}, outcome.said


def test_services_that_cannot_be_are_errors_of_their_cases(test_cache: Path, tmp_path: Path) -> None:
    made = Workspace.make(tmp_path / "w", '[run]\nnetwork = "none"\n')
    store = workspaces.fresh_store(tmp_path / "store", test_cache)
    echo = '[[qcase.services]]\nkind = "echo"\nport = 7\n'
    keys: dict[str, Any] = {"success_regex": ["x"]}
    with_table(made.case("none", **keys), echo)
    args = [*workspaces.ARGS[Arch.AARCH64], "-nic", "none"]
    with_table(made.case("no-card", args=args, qcase={"network": "restricted"}, **keys), echo)
    table = '[[qcase.services]]\nkind = "http"\nport = 80\nfolder = "missing"\n'
    with_table(made.case("no-folder", qcase={"network": "restricted"}, **keys), table)
    outcome = workspaces.run(made, store=store)
    assert set(outcome.verdicts.values()) == {"error"}
    assert outcome.exit_code == 2
    assert 'network = "none" leaves no way to the services of the host' in outcome.case("none")["reason"]
    assert "the services of the host need a card on a `user` network" in outcome.case("no-card")["reason"]
    assert "there is no folder 'missing'" in outcome.case("no-folder")["reason"]
