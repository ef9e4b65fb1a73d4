"""Fresh machines: an empty Debian 12 and an empty Debian 13, the project cloned there, and the README's two commands run.

    make test-fresh                                         both, `make demo` and `make test`
    make test-fresh FRESH_ARGS="bookworm --only demo"       one of them, one command
    make test-fresh FRESH_ARGS="trixie --only setup"        `make setup`, and four cases that want no image but c
    make test-fresh FRESH_ARGS="trixie --pulled"            the same four, with c from this machine: see `pulled`

A machine is a container: made with mmdebstrap, privileged, with git, make and Python and nothing else; its engine is
installed and started by the project itself. What is written much stands on volumes, for a container's own files may be on
fuse-overlayfs. Like a machine that somebody administers, it has this one's package mirror, pip configuration and
certificates. What is done there:

    as an ordinary user   the commands say what is missing, and the line to paste as root
    as root               the two commands, as the README has them
    again                 the same with the downloads there and no network; `make demo` with the store emptied, too
    as an ordinary user   in the group docker, after root has set the machine up

Each step's output goes to target/fresh/<suite>/; the table at the end has seconds and what came over the network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qcase.containers.engine import Engine
from qcase.guests import debian_archive
from qcase.host import process
from qcase.toolchains import base, images, travel
from qcase.toolchains.recipes import BaseDefinition
from tests import registry
from tests.conftest import ROOT
from tests.tools import same_everywhere

SUITES = ("bookworm", "trixie")
# As far as `.ci/run` has time for: the machine is set up, a guest and what the C image is made of fetched, that image built.
FOUR = "run --workspace examples/linux --arch x86_64 boot smoke futex proc"
SHORT = f"make setup && .venv/bin/qcase {FOUR}"
PACKAGES = "git,make,python3,ca-certificates"
PATIENCE = 3 * 3600.0  # seconds; a busy machine takes long


def two_commands() -> list[str]:
    """Those that the README promises."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^## Two commands\n\n```console\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for line in block.splitlines()]


def docker(*arguments: str, check: bool = True, stdin: bytes | None = None) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, input=stdin, check=False)
    if check and done.returncode != 0:
        raise SystemExit(f"docker {shlex.join(arguments)}: {done.stderr.decode()}")
    return done.stdout.decode().strip()


def empty_machine(suite: str) -> str:
    """The image of an empty Debian, made once."""
    name = f"qcase/fresh:{suite}"
    if docker("image", "inspect", "-f", "{{.Id}}", name, check=False):
        return name
    print(f"{suite}: making an empty Debian", flush=True)
    mirrors = debian_archive.host_mirrors(debian_archive.APT, os.environ)
    with tempfile.TemporaryDirectory(prefix="qcase-fresh-") as folder:
        tarball = Path(folder) / "machine.tar"
        argv = base.mmdebstrap_arguments(BaseDefinition(suite, "minbase"), mirrors, tarball)
        argv.insert(1, f"--include={PACKAGES}")
        subprocess.run(argv, check=True, capture_output=True)
        docker("import", "--change", "LABEL qcase=1 qcase.fresh=1", str(tarball), name)
    return name


@dataclass
class Row:
    machine: str
    what: str
    network: str
    seconds: float
    megabytes: float
    good: bool


@dataclass
class Machine:
    """A running machine. `run` executes as root, or as `user`, and notes what it took."""

    suite: str
    name: str
    logs: Path
    rows: list[Row] = field(default_factory=list)
    network: bool = True

    def run(self, what: str, script: str, *, user: str = "root", status: int = 0, timeout: float = PATIENCE) -> str:
        print(f"{self.suite}: {what} …", flush=True)
        log = self.logs / f"{len(self.rows) + 1}-{re.sub(r'[^a-z0-9]+', '-', what.lower()).strip('-')}.log"
        before, began = self.received(), time.monotonic()
        # A login shell's environment, and not docker's.
        argv = ["docker", "exec", self.name, "su", "-l", user, "-c", f"cd /home/qcase/project && {{ {script}; }}"]
        with log.open("wb") as out:
            try:
                ended = subprocess.run(argv, stdout=out, stderr=subprocess.STDOUT, check=False, timeout=timeout).returncode
            except subprocess.TimeoutExpired:
                ended = -1
        said = log.read_text(errors="replace")
        good = ended == status
        seconds = time.monotonic() - began
        row = Row(self.suite, what, "on" if self.network else "off", seconds, (self.received() - before) / 1e6, good)
        self.rows.append(row)
        print(f"{self.suite}: {what}: {'good' if good else 'BAD'}, {row.seconds:.0f} s, {row.megabytes:.0f} MB", flush=True)
        if not good:
            print(f"  ended with status {ended}, not {status}; {log}:")
            print("".join(f"  | {line}\n" for line in said.splitlines()[-15:]), flush=True)
        return said

    def expect(self, what: str, said: str, *patterns: str) -> None:
        """Note it as bad if a pattern is not in what was said."""
        for pattern in patterns:
            if not re.search(pattern, said, re.MULTILINE):
                print(f"{self.suite}: {what}: BAD, it does not say {pattern!r}", flush=True)
                self.rows[-1].good = False

    def note_bad(self, what: str, why: str) -> None:
        print(f"{self.suite}: {what}: BAD, {why}", flush=True)
        self.rows[-1].good = False

    def entries(self) -> dict[tuple[str, str], tuple[str, str]]:
        """What is in root's store on the machine, as `same_everywhere.entries` says it."""
        script = "cd /home/qcase/project && .venv/bin/python -m tests.tools.same_everywhere --entries ~/.cache/qcase"
        said = docker("exec", self.name, "su", "-l", "root", "-c", script)
        return {(kind, key): (made_for, digest) for kind, key, made_for, digest in json.loads(said)}

    def received(self) -> int:
        said = docker("exec", self.name, "cat", "/sys/class/net/eth0/statistics/rx_bytes", check=False)
        return int(said) if said.isdecimal() else 0  # without a network, or without an answer

    def unplug(self) -> None:
        docker("network", "disconnect", "bridge", self.name)
        self.network = False


PRIVILEGED = ["--privileged"]
# What an engine can give that has not got every capability itself. The control groups are made writable below.
NEARLY = ["--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--device-cgroup-rule", "a *:* rwm"]
NEARLY += [part for option in ("seccomp", "apparmor", "systempaths") for part in ("--security-opt", f"{option}=unconfined")]


def may_be_privileged(image: str) -> bool:
    return (
        subprocess.run(["docker", "run", "--rm", "--privileged", image, "true"], capture_output=True, check=False).returncode == 0
    )


def certificates() -> str:
    """The authorities that this machine trusts, in one file."""
    bundle = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
    return bundle.read_text() if bundle.is_file() else ""


# The administrator's part: certificates and pip's configuration of this machine, a user, the project.
ADMINISTRATE = r"""
set -eu
grep -o ' /sys/fs/cgroup[^ ]* ' /proc/mounts | while read -r folder; do mount -o remount,bind,rw "$folder"; done
mkdir -p /usr/local/share/ca-certificates /etc/docker
python3 - <<'EOF'
import re
from pathlib import Path
pattern = r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----"
ours = re.findall(pattern, Path("/etc/ssl/certs/ca-certificates.crt").read_text(), re.DOTALL)
theirs = re.findall(pattern, Path("/tmp/authorities").read_text(), re.DOTALL)
for number, one in enumerate(one for one in theirs if one not in ours):
    Path(f"/usr/local/share/ca-certificates/{number}.crt").write_text(one + "\n")
EOF
update-ca-certificates >/dev/null 2>&1
[ -e /dev/loop-control ] || mknod /dev/loop-control c 10 237
for number in 0 1 2 3 4 5 6 7; do [ -e "/dev/loop$number" ] || mknod "/dev/loop$number" b 7 "$number"; done
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >/etc/pip.conf
printf '{"mtu": %s, "insecure-registries": ["%s"]}' "$MTU" "$REGISTRY" >/etc/docker/daemon.json
useradd --create-home --shell /bin/bash qcase
git config --system --add safe.directory '*'
git clone -q /tmp/project.git /home/qcase/project
chown -R qcase: /home/qcase/project
"""


@contextmanager
def fresh(suite: str, insecure: str = "registry.invalid", project: Path = ROOT) -> Iterator[Machine]:
    """A machine that nobody has touched yet; nothing is left of it afterwards. `insecure`: a registry without TLS.

    `project`: the repository whose commit it gets.
    """
    image = empty_machine(suite)
    name = f"qcase-fresh-{suite}-{uuid.uuid4().hex[:6]}"
    logs = ROOT / "target" / "fresh" / suite
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("*.log"):
        old.unlink()
    docker("volume", "create", "--label", "qcase=1", name)
    try:
        disks = [part for folder in ("/home", "/root", "/tmp", "/var/tmp") for part in ("-v", folder)]
        arguments = ["--init", "-v", f"{name}:/var/lib/docker", *disks, "--hostname", suite, "--label", "qcase=1"]
        arguments += PRIVILEGED if may_be_privileged(image) else NEARLY
        docker("run", "-d", "--name", name, *arguments, image, "sleep", "infinity")
        with tempfile.TemporaryDirectory(prefix="qcase-fresh-") as folder:
            bare = Path(folder) / "project.git"
            subprocess.run(["git", "clone", "-q", "--bare", "--no-hardlinks", str(project), str(bare)], check=True)
            docker("cp", str(bare), f"{name}:/tmp/project.git")
            (Path(folder) / "authorities").write_text(certificates())
            docker("cp", str(Path(folder) / "authorities"), f"{name}:/tmp/authorities")
        mtu = docker("network", "inspect", "bridge", "-f", '{{index .Options "com.docker.network.driver.mtu"}}') or "1500"
        told = ["--env", f"MTU={mtu}", "--env", f"REGISTRY={insecure}"]
        docker("exec", "-i", *told, name, "sh", stdin=ADMINISTRATE.encode())
        yield Machine(suite, name, logs)
    finally:
        docker("rm", "-f", "-v", name, check=False)
        docker("volume", "rm", "-f", name, check=False)


def go(suite: str, commands: list[str], *, ordinary: bool, again: bool) -> list[Row]:
    """The steps on one machine. `commands` is some of the README's two, or SHORT."""
    with fresh(suite) as machine:
        if ordinary:
            what = "ordinary user, nothing installed"
            said = machine.run(what, "make demo", user="qcase", status=2)
            machine.expect(what, said, r"^setup: missing:.* docker\.io", r"^setup: on Debian or Ubuntu: +sudo apt-get install")
        name = "make setup, four cases" if SHORT in commands else "make demo"
        runs = next((command for command in commands if command != "make test"), "")
        for command in commands:
            what = name if command == runs else command
            said = machine.run(what, command)
            if command == runs:
                machine.expect(what, said, r"^\d+ cases in .*: \d+ passed$")
        if again:
            machine.unplug()
            if runs:
                machine.run(f"{name}, again", runs)
                machine.run(f"{name}, store emptied", f".venv/bin/qcase cache clear && {runs}")
        if ordinary and runs:
            what = "ordinary user, not in the group docker"
            machine.run("giving the project back", "chown -R qcase: .")
            said = machine.run(what, runs, user="qcase", status=2)
            machine.expect(what, said, r"sudo usermod -aG docker qcase")
            # Guests and packages are the machine's, as if this user had fetched them: there is no network any more.
            copied = "mkdir -p ~qcase/.cache && cp -r --sparse=always ~/.cache/qcase* ~qcase/.cache/"
            machine.run("root lets them use the engine", f"usermod -aG docker qcase && {copied} && chown -R qcase: ~qcase")
            machine.run(f"{name}, ordinary user", runs, user="qcase")
        if again and "make test" in commands:
            machine.run("make test, again", "chown -R root: . && make test")
        return machine.rows


def pulled(suite: str) -> list[Row]:
    """A second machine, with an engine of its own and an empty store, which takes the image `c` from this one.

    By a registry first, then, without a network, from a file. Prints each key with the sha256 of what is stored under it, here
    and there; they have to be the same. On this machine the image is built if it is not there.
    """
    cache = Path(os.environ.get("QCASE_TEST_CACHE") or Path.home() / ".cache" / "qcase-tests")
    with tempfile.TemporaryDirectory(prefix="qcase-pulled-") as folder, Engine.connect() as engine:
        images.ensure("c", engine, cache)
        here = Path(folder) / "here"
        here.mkdir()
        # Both have this commit, whatever is edited in the tree meanwhile.
        checkout = Path(folder) / "project"
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(checkout)], check=True)
        for name in ("guests", "images"):
            if (cache / name).is_dir():
                (here / name).symlink_to(cache / name, target_is_directory=True)
        with registry.running(engine, cache) as served:
            (pushed,) = travel.push(f"{served.host}/first", ["c"], engine, cache)
            reference = pushed.reference.replace(served.host, served.address)
            with fresh(suite, served.address, checkout) as machine:
                qcase = ".venv/bin/qcase"
                machine.run("make setup", "make setup")
                said = machine.run("pull the image", f"{qcase} images pull {reference}")
                machine.expect("pull the image", said, rf"^c: sha256:\w+, identity {pushed.image.identity}")
                said = machine.run("four cases, image pulled", f"{qcase} {FOUR}")
                machine.expect("four cases, image pulled", said, r"4 passed$")
                if "building the image" in said:
                    machine.note_bad("four cases, image pulled", "it built an image")
                by_registry = machine.entries()
                machine.unplug()
                again = f"{qcase} images save /tmp/c.tar c && docker rmi -f $(docker images -q --no-trunc qcase/c) >/dev/null"
                again += f" && {qcase} cache clear --all && {qcase} images load /tmp/c.tar"
                guests = "cp -r --sparse=always ~/.cache/qcase/guests /tmp/guests"
                back = "rm -rf ~/.cache/qcase/guests && mv /tmp/guests ~/.cache/qcase/guests"
                machine.run("saved and loaded", f"{guests} && {again} && {back}")
                said = machine.run("four cases, image loaded", f"{qcase} {FOUR}")
                machine.expect("four cases, image loaded", said, r"4 passed$")
                by_file = machine.entries()
                rows = machine.rows
        # By that checkout, which is what the machine has. With CI set, images would not be stored.
        arguments = [*FOUR.split(), "--cache-dir", str(here)]
        argv = [sys.executable, "-c", "from qcase.cli.main import program; program()", *arguments]
        environ = {name: value for name, value in os.environ.items() if name != "CI"}
        with (machine.logs / "here.log").open("wb") as log:
            ended = subprocess.run(argv, check=False, cwd=checkout, env=environ, stdout=log, stderr=subprocess.STDOUT).returncode
        if ended != 0:
            machine.note_bad("the same four cases here", f"they ended with status {ended}; {log.name}")
        for how, there in (("pulled", by_registry), ("loaded", by_file)):
            compared = same_everywhere.rows_of(same_everywhere.entries(here), there)
            print(f"\nthe image c {how}:\n\n{same_everywhere.table(compared)}")
            if len(compared) < 6 or any(row.here != row.there for row in compared):
                machine.note_bad(f"the image c {how}", "keys or bytes differ")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="make test-fresh")
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], help="default: both")
    parser.add_argument("--only", choices=["setup", "demo", "test"], help="one of the two commands, or what comes before them")
    parser.add_argument("--pulled", action="store_true", help="take the image c from this machine, and compare the stores")
    parser.add_argument("--quick", action="store_true", help="the first way alone: as root, with a network")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # so that nothing of a machine is left
    commands = [command for command in two_commands() if options.only is None or command == f"make {options.only}"]
    if options.only == "setup":
        commands = [SHORT]
    rows: list[Row] = []
    for suite in options.suites or SUITES:
        if options.pulled:
            rows += pulled(suite)
        else:
            rows += go(suite, commands, ordinary=not options.quick, again=not options.quick)
    process.dismiss_guardian()
    print("\n| machine | what | network | seconds | received | |\n| --- | --- | --- | ---: | ---: | --- |")
    for row in rows:
        end = "good" if row.good else "BAD"
        print(f"| {row.machine} | {row.what} | {row.network} | {row.seconds:.0f} | {row.megabytes:.0f} MB | {end} |")
    sys.exit(0 if all(row.good for row in rows) else 1)


if __name__ == "__main__":
    main()
