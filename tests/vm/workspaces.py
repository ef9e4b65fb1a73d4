"""Small workspaces, and the real `qcase` program run in them as a child.

    <root>/qcase.toml
    <root>/suite/normal/<case>/qemu-<arch>.toml, c/, sh/, …

The child sees nothing of our environment but `PATH`, what the engine and pip need, and what a test names.
"""

from __future__ import annotations

import functools
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path
from typing import Any

from qcase.arch import Arch
from qcase.config.schema import literal
from qcase.containers.engine import Engine
from qcase.guests import guest
from qcase.host.crash_cleanup import marked_processes as marked_processes
from qcase.host.process import Deadline
from qcase.toolchains import images

QCASE = Path(sys.executable).with_name("qcase")
PATIENCE = 400.0  # seconds; only a test that fails waits that long
PROMPT = "root@qcase:"
ARGS = {
    Arch.X86_64: ["-nographic", "-m", "256M"],
    Arch.AARCH64: ["-nographic", "-cpu", "cortex-a72", "-m", "256M"],
}
_PASSED_ON = ("PATH", "DOCKER_HOST", "http_proxy", "https_proxy", "no_proxy")

Files = Mapping[str, str]


@dataclass(frozen=True)
class Workspace:
    """A workspace on disk."""

    root: Path

    @classmethod
    def make(cls, root: Path, config: str = "") -> Workspace:
        (root / "suite" / "normal").mkdir(parents=True)
        (root / "qcase.toml").write_text(f'[suite]\nname = "acceptance"\nroot = "suite"\n{textwrap.dedent(config)}')
        return cls(root)

    def path(self, case: str) -> Path:
        return self.root / "suite" / "normal" / case

    def case(self, name: str, files: Files | None = None, *, arch: Arch = Arch.AARCH64, **keys: Any) -> Path:
        """A case with the keys of its `qemu-<arch>.toml`; what is not named here is what most cases have."""
        if "test_commands" not in keys:
            keys = {"shell_init_cmd": "true", **keys}
        whole = {"args": ARGS.get(arch, ["-nographic", "-m", "256M"]), "shell_prefix": PROMPT, "timeout": 120, **keys}
        table = whole.pop("qcase", {})
        folder = self.path(name)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{key} = {json.dumps(value)}" for key, value in whole.items()]
        if table:
            lines += ["[qcase]", *(f"{key} = {literal(value)}" for key, value in table.items())]
        (folder / f"qemu-{arch}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for path, text in (files or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(textwrap.dedent(text), encoding="utf-8")
        return folder

    def broken(self, name: str, text: str, *, arch: Arch = Arch.AARCH64) -> None:
        """A case whose TOML is `text`."""
        self.path(name).mkdir(parents=True)
        (self.path(name) / f"qemu-{arch}.toml").write_text(text)

    @property
    def run_folders(self) -> list[Path]:
        return [path for path in self.runs if path.is_dir()]

    @property
    def runs(self) -> list[Path]:
        """Run folders, and their locks: those of a run that was killed are swept by the next one."""
        # (Path.glob before Python 3.11.4 fails at a folder that goes meanwhile.)
        folders = (Path(folder) for target in self.root.glob("target/*/qemu-cases") for folder, _, _ in os.walk(target))
        return [Path(entry) for folder in folders if folder.name == "runs" for entry in _listed(folder)]


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except FileNotFoundError:
        return []


def c_program(main: str, name: str = "prog", folder: str = "c", **more: str) -> dict[str, str]:
    """The sources of a program `/usr/bin/<name>`. `more`: other files beside it, `_` for the dot of their name."""
    files = {
        f"{folder}/CMakeLists.txt": f"""\
            cmake_minimum_required(VERSION 3.16)
            project({name} C)
            add_executable({name} main.c)
            target_link_options({name} PRIVATE -static)
            install(TARGETS {name} DESTINATION usr/bin)
            """,
        f"{folder}/main.c": main,
    }
    return files | {f"{folder}/{key.replace('_', '.')}": text for key, text in more.items()}


def says(text: str) -> str:
    """A C program that prints a line."""
    return f'#include <stdio.h>\nint main(void) {{ puts("{text}"); return 0; }}\n'


@dataclass(frozen=True)
class Outcome:
    """What a run of the program came to. `report` is what `--json` wrote, None where it wrote nothing."""

    exit_code: int
    stdout: str
    stderr: str
    report: dict[str, Any] | None = None

    @property
    def said(self) -> str:
        return self.stdout + self.stderr

    def case(self, name: str) -> dict[str, Any]:
        assert self.report is not None, self.said
        found = {case["case"]: case for case in self.report["cases"]}
        result: dict[str, Any] = found[f"normal/{name}"] if f"normal/{name}" in found else found[name]
        return result

    @property
    def verdicts(self) -> dict[str, str]:
        assert self.report is not None, self.said
        return {case["case"].removeprefix("normal/"): case["verdict"] for case in self.report["cases"]}


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child of a test sees. `home` is a folder of the test, also for temporary files."""
    passed = {key: value for key, value in os.environ.items() if key in _PASSED_ON or key.startswith("PIP_")}
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    return {**passed, "HOME": str(home), "TMPDIR": str(home / "tmp"), "LC_ALL": "C.UTF-8", **(extra or {})}


@dataclass
class Running:
    """The program as it runs. `stop` it by a signal, or wait for its `outcome`."""

    child: subprocess.Popen[str]
    json_file: Path
    _said: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.child.pid

    def outcome(self, timeout: float = PATIENCE) -> Outcome:
        try:
            stdout, stderr = self.child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.child.terminate()
            self.child.communicate()
            raise
        report = json.loads(self.json_file.read_text(encoding="utf-8")) if self.json_file.is_file() else None
        return Outcome(self.child.returncode, "".join(self._said) + stdout, stderr, report)

    def until(self, word: str) -> None:
        """Read its output up to a line with `word`."""
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self._said.append(line)
            if word in line:
                return
        raise AssertionError(f"no {word!r} in {''.join(self._said)!r}")

    @property
    def run_id(self) -> str | None:
        """The mark that its children carry, if there is one. Those in containers do not."""
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdigit() else []
            except OSError:
                continue
            for word in words:
                if word.startswith(f"QCASE_RUN_ID={self.pid}-".encode()):
                    return word.decode().partition("=")[2]
        return None


def start(
    workspace: Workspace | Path,
    *arguments: str,
    store: Path | None,
    env: Mapping[str, str] | None = None,
    arch: Arch | None = Arch.AARCH64,
    json_file: Path | None = None,
    prefix: Sequence[str] = (),
) -> Running:
    """Start `qcase run` in a workspace. `prefix`: a command that runs it, e.g. in a mount namespace."""
    root = workspace.root if isinstance(workspace, Workspace) else workspace
    beside = root.parent / f"{root.name}.outside"
    beside.mkdir(exist_ok=True)
    json_file = json_file or beside / f"{time.monotonic_ns()}.json"
    argv = [*prefix, str(QCASE), "run", "--workspace", str(root), "--json", str(json_file)]
    argv += ["--arch", arch] if arch is not None else []
    argv += ["--cache-dir", str(store)] if store is not None else []
    child = subprocess.Popen(
        [*argv, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment(beside, env),
        cwd=beside,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests that run in the background ignore it
    )
    return Running(child, json_file)


def run(
    workspace: Workspace | Path,
    *arguments: str,
    store: Path | None,
    env: Mapping[str, str] | None = None,
    arch: Arch | None = Arch.AARCH64,
    json_file: Path | None = None,
    prefix: Sequence[str] = (),
    timeout: float = PATIENCE,
) -> Outcome:
    """`qcase run` from start to end. No run may ever show a traceback."""
    started = start(workspace, *arguments, store=store, env=env, arch=arch, json_file=json_file, prefix=prefix)
    outcome = started.outcome(timeout)
    assert "Traceback" not in outcome.said, outcome.said
    return outcome


def run_on_terminal(
    workspace: Workspace, *arguments: str, store: Path, columns: int, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """`qcase run` on a terminal of so many columns: its exit code, and every byte that it wrote there."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    beside = workspace.root.parent / "terminal"
    argv = [str(QCASE), "run", "-w", str(workspace.root), "-a", "aarch64", "--cache-dir", str(store), *arguments]
    whole = environment(beside, {"TERM": "xterm-256color", **(env or {})})
    child = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=whole, start_new_session=True)
    os.close(theirs)
    raw = b""
    deadline = Deadline.after(PATIENCE)
    while True:
        ready, _, _ = select.select([ours], [], [], deadline.remaining())
        assert ready, raw
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # EIO: nobody has the other end any more
            break
        if not data:
            break
        raw += data
    os.close(ours)
    return child.wait(PATIENCE), raw.decode()


# --- what is left -------------------------------------------------------------------------------------------------------


def containers_of(pid: int) -> list[str]:
    """The run ids, which begin with it, of the containers of one process, in any state."""
    import docker

    client = docker.APIClient(version="auto")
    try:
        found = client.containers(all=True, filters={"label": "qcase.run"})
    finally:
        client.close()
    return [mark for c in found if (mark := str(c["Labels"]["qcase.run"])).startswith(f"{pid}-")]


def qemu_of(run_id: str) -> list[int]:
    """The QEMU processes of a run."""
    found = []
    for pid in marked_processes(run_id):
        try:
            name = Path(f"/proc/{pid}/comm").read_text()
        except OSError:
            continue
        if name.startswith("qemu-system"):
            found.append(pid)
    return found


def eventually(what: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait until a condition holds; returns what it gave."""
    deadline = Deadline.after(seconds)
    while True:
        if value := condition():
            return value
        assert not deadline.passed, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def kill(running: Running, number: signal.Signals) -> None:
    os.kill(running.pid, number)


def plain(text: str) -> str:
    """A terminal's bytes without its escape sequences."""
    return re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))", "", text)


# --- stores -------------------------------------------------------------------------------------------------------------


@functools.cache
def provide(cache: Path) -> None:
    """Have both guests and the records of the images in the tests' store. Done once for each session."""
    for arch in (Arch.X86_64, Arch.AARCH64):
        guest.alpine_guest(arch, cache, emit=lambda _: None)
    with Engine.connect() as engine:
        for name in ("c", "alpine"):  # a container reads what is in an image that has no record
            images.ensure(name, engine, cache)
    (cache / "memory").mkdir(exist_ok=True)


def fresh_store(folder: Path, test_cache: Path) -> Path:
    """An empty store, but for the guests and the records of the toolchain images: those are the tests' own."""
    provide(test_cache)
    folder.mkdir(parents=True)
    (folder / "memory").symlink_to(test_cache / "memory", target_is_directory=True)
    shutil.copytree(test_cache / "images", folder / "images", ignore=shutil.ignore_patterns("*.lock", "*.owner", "*.log", ".*"))
    (folder / "guests").mkdir()
    for made in (test_cache / "guests").iterdir():  # one by one: what these tests do not have yet is made here
        if not made.name.startswith("."):
            (folder / "guests" / made.name).symlink_to(made, target_is_directory=True)
    return folder
