"""Templates of a run: chooses the case that makes one, those that go on from it, and those that boot cold.

    first case of a machine     boots cold, and is judged
    second                      makes the template, and goes on from it
    others                      wait for it, and go on from it; they boot cold where that is over sooner

A machine that cannot have a template is remembered with the reason, and its cases boot cold. That is never an error.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from qcase.arch import Arch
from qcase.config.fields import Branch
from qcase.host import file_state, process
from qcase.host.process import Deadline
from qcase.vm import branching
from qcase.vm.arguments import MachineSpec
from qcase.vm.machine import version
from qcase.vm.template import NoTemplateError, Start, Template, make

FIRST = "the first case of its machine boots cold"
_UNKNOWN = 60.0  # seconds that a template may take while no case of its machine has booted
_PATIENCE = 5.0  # seconds that a case waits for one then
_FACTOR, _SPARE = 2.0, 5.0  # a template may take so many times the seconds of the first case, and so many more
MEMORY_LIMIT = 1 << 30  # bytes of all templates of a run


@dataclass
class _Machine:
    """A machine of the run. `prompts`: of the cases that came so far. `cold`: seconds of its first case to its prompt or verdict.
    `refused`: why it has no template.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    begun: bool = False
    prompts: set[str] = field(default_factory=set)
    cold: float | None = None
    template: Template | None = None
    refused: str = ""

    def limit(self) -> float:
        return _UNKNOWN if self.cold is None else _FACTOR * self.cold + _SPARE


@dataclass(frozen=True)
class Choice:
    """A case's way to boot: from a template, or cold for a reason. `key`: of its machine, empty if no key was computed."""

    key: str = ""
    template: Template | None = None
    cold: str = ""


class Templates:
    """The templates of a run. Thread-safe. `limit`: bytes that all of them may take."""

    def __init__(self, asked: Branch, limit: int = MEMORY_LIMIT) -> None:
        self.asked = asked
        self._limit = limit
        self._lock = threading.Lock()
        self._machines: dict[str, _Machine] = {}
        self._records: dict[Path, file_state.Record] = {}
        self._versions: dict[Arch, str] = {}

    def close(self) -> None:
        """Forget all templates. Machines that run keep what they have mapped."""
        with self._lock:
            for machine in self._machines.values():
                if machine.template is not None:
                    machine.template.close()
            self._machines.clear()

    def choose(self, spec: MachineSpec, how: Start, program: Path | None, prompt: str | None) -> Choice:
        """Choose a case's way to boot. Makes a template if it is time for one. `program`: QEMU's file."""
        image = spec.image
        if image is None:
            return Choice(cold="its machine has no root disk")
        try:
            why = branching.refusal(spec, how.argv) or branching.image_fault(image)
            key = "" if why or program is None else branching.key(how.argv, self._surroundings(how, image, program))
        except OSError as error:
            return Choice(cold=f"{error.filename}: {error.strerror}")
        except NoTemplateError as error:
            return Choice(cold=str(error))
        if not key:
            return Choice(cold=why or "QEMU's program is not known")
        with self._lock:
            machine = self._machines.setdefault(key, _Machine())
            first, machine.begun = not machine.begun, True
            machine.prompts |= {prompt} if prompt else set()
        if first:
            return Choice(key, cold=FIRST)
        return self._later(machine, key, image, how)

    def booted_cold(self, key: str, seconds: float) -> None:
        """Record the seconds to the prompt or the verdict of a cold case."""
        machine = self._machines.get(key)
        if machine is not None and machine.cold is None:
            machine.cold = seconds

    def refuse(self, key: str, why: str) -> None:
        """Record that the template of a machine is of no use."""
        if (machine := self._machines.get(key)) is not None:
            machine.refused = why

    def _later(self, machine: _Machine, key: str, image: Path, how: Start) -> Choice:
        patience = Deadline.after(_PATIENCE if machine.cold is None else machine.cold)
        while not machine.lock.acquire(timeout=0.05):
            process.check_stopped()
            if patience.passed:
                return Choice(key, cold="its template was not ready")
        try:
            if machine.template is None and not machine.refused:
                self._make(machine, image, how)
        finally:
            machine.lock.release()
        return Choice(key, cold=machine.refused) if machine.refused else Choice(key, machine.template)

    def _make(self, machine: _Machine, image: Path, how: Start) -> None:
        try:
            made = make(how, image.stat().st_size, frozenset(machine.prompts), machine.limit)
        except NoTemplateError as error:
            machine.refused = str(error)
            process.check_stopped()  # an interrupt ends the template's QEMU, too
            return
        with self._lock:
            taken = sum(one.template.size for one in self._machines.values() if one.template is not None)
            if taken + made.size <= self._limit:
                machine.template = made
                return
        made.close()
        machine.refused = f"the templates of this run would take more than {self._limit >> 20} MiB"

    def _surroundings(self, how: Start, image: Path, program: Path) -> branching.Surroundings:
        folder = how.cwd or Path.cwd()
        digests = {name: self._digest(folder / name) for name in branching.files(how.argv)}
        return branching.Surroundings(
            qemu=f"{self._version(how.arch)} {self._digest(program)}",
            image_size=image.stat().st_size,
            digests=digests,
            disks={name: _state(folder / name) for name in branching.other_disks(how.argv)},
        )

    def _digest(self, path: Path) -> str:
        real = path.resolve()
        record = self._records.get(real)
        if record is None or not file_state.is_as_recorded(real, record["facts"]):
            record = self._records[real] = file_state.read(real)
        return record["sha256"]

    def _version(self, arch: Arch) -> str:
        if arch not in self._versions:
            self._versions[arch] = ".".join(map(str, version(arch)))
        return self._versions[arch]


def _state(path: Path) -> str:
    """Return the identity of a disk's file. Raises `NoTemplateError` if it could change without a change of that."""
    facts = file_state.facts(path.resolve())
    if facts is None or not file_state.times_tell(facts["device"], facts["ctime_ns"]):
        raise NoTemplateError(f"{path} may change unseen")
    return " ".join(str(value) for value in facts.values())
