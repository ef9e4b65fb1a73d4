"""The kernel and the firmware that a case boots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qcase import events
from qcase.arch import Arch
from qcase.config import ktest_table, qemu_options
from qcase.config.workspace_file import KernelBuild, is_guest
from qcase.errors import ConfigError, InfraError, KernelError, Problem, UsageError
from qcase.events import Emit
from qcase.guests import kernel_files
from qcase.guests.kernel_files import Kernel
from qcase.inputs import ingredients, trust
from qcase.model import KernelBuildResult, Phase
from qcase.prepare.base_guest import BaseGuest, memory_of
from qcase.prepare.once import Once, shared_property
from qcase.prepare.prepared import Uefi
from qcase.prepare.toolchain_choice import ToolchainChoice
from qcase.suite.cases import Case, Workspace
from qcase.vm import firmware
from qcase.vm.accelerator import Proof, obstacle, prove
from qcase.vm.arguments import MachineSpec
from qcase.vm.firmware import Firmware

if TYPE_CHECKING:
    from qcase.containers.engine import Engine
    from qcase.guests import kernel_build

_DETAILS = 40  # lines of a build's output in its result
INJECTOR = "c"  # the toolchain image with e2fsprogs, which injects overlays into the base image


@dataclass(frozen=True)
class CaseKernels:
    """Finds or makes the kernels of a run's cases. `file`: the kernel of `--kernel`, which goes before the configuration."""

    workspace: Workspace
    arch: Arch
    target: str
    environ: Mapping[str, str]
    emit: Emit
    once: Once
    guest: BaseGuest
    toolchains: ToolchainChoice
    engine: Callable[[], Engine]
    file: Path | None = None
    waits: dict[str, float] = field(default_factory=dict)  # seconds, by the names of cases

    def kernel(self, case: Case) -> Kernel:
        """Return the kernel for a case: the file of `--kernel`, else the result of a kernel build, else the guest's kernel.

        Raises `KernelError` for a failed build, for each case of the build group; `UsageError` for a file that is no kernel.
        """
        kernel = self._kernel(case)
        if not case.config.to_bin:
            return kernel if case.config.uefi else self._unpacked(kernel, case)
        made = kernel_files.raw_name(kernel, kernel_files.folder(self.workspace.root), self.toolchains.identity(INJECTOR))

        def make(staged: Path) -> None:
            self.emit(events.PhaseStarted(case.display_name, Phase.PREPARE, "making a raw binary of the kernel"))
            kernel_files.to_raw(kernel, staged, self.engine(), self.toolchains.image(INJECTOR).id, case.display_name)

        return self._derived(made, make, "to_bin")

    def uefi(self, case: Case, kernel: Kernel) -> Uefi | None:
        """Return the UEFI boot settings of a case, None without `uefi`. Makes the EFI system partition where one is needed.

        Raises `InfraError` for missing firmware, `KernelError` for a kernel that is no EFI application.

        Firmware starts `EFI/BOOT/BOOT<arch>.EFI` of a disk without an initrd or a command line. If the kernel needs one of
        them, QEMU passes kernel, initrd and command line to the firmware, and the firmware starts the kernel.
        """
        if not case.config.uefi:
            return None
        program = firmware.uefi_of(self.arch).program
        firmware.check_program(kernel.path, self.arch, case.display_name)
        if any(self.beside(case)) or any(o.kind == "append" for o in qemu_options.split(case.config.args)):
            return Uefi(self._firmware, None)
        made = kernel_files.folder(self.workspace.root) / kernel.sha256 / f"esp-{self.arch}.img"

        def make(staged: Path) -> None:
            from qcase.disk import fat

            staged.write_bytes(fat.image({program: kernel_files.content(kernel)}))

        self._kept(made, make)
        return Uefi(self._firmware, made)

    def beside(self, case: Case) -> tuple[Path | None, str]:
        """Return the initrd and the command line that a case's kernel gets. A kernel that is tested alone gets no initrd."""
        if case.config.ktest:
            return None, self.workspace.config.guest[self.arch].append
        return self.guest.current.initrd, self.guest.current.append

    def proof_of_kvm(self, case: Case, kernel: Kernel, spec: MachineSpec) -> Proof | None:
        """Test whether KVM boots a kernel to a prompt. A built-in guest boots as it is, any other one with the case's machine.

        None if the case has no prompt and no obstacle to KVM is known: then a test boot cannot tell.
        """
        config = self.workspace.config.guest[self.arch]
        memory = memory_of(self.workspace, self.guest.store)
        if self.file is None and is_guest(config.kernel) and config.initrd is None and not case.config.ktest:
            rootfs = self.guest.current.rootfs
            plain = replace(spec, args=("-nographic", "-m", "256M"), image=rootfs, network="none", processors=1)
            plain = replace(plain, initrd=self.guest.current.initrd, root_serial="")
            return prove(plain, kernel.sha256, f"root@{config.hostname}:", memory)
        if case.config.first_prompt is None:
            why = obstacle(self.arch)
            return Proof(why) if why else None
        return prove(spec, kernel.sha256, case.config.first_prompt, memory)

    def waited(self, case: Case) -> float:
        """Return the seconds for which a case has waited for builds of its kernel so far."""
        return self.waits.get(case.display_name, 0.0)

    def build_group(self, case: Case) -> kernel_build.Group:
        """Return the key of a kernel build: the case's build group and the nearest build-<target>.toml above the case."""
        from qcase.guests import kernel_build

        configs = ingredients.build_configurations(case, self.workspace, self.target)
        config = next((path for path in configs if path.is_file()), None)
        group = kernel_build.Group(case.build_group, config, self.arch, self.target, case.config.kernel_env)
        if not case.config.ktest:
            return group
        return replace(group, case=case.stored_as, folder=case.path, args=case.config.kernel_args)

    def _kernel(self, case: Case) -> Kernel:
        chosen = self.workspace.config.guest[self.arch].kernel
        if self.file is not None:
            return self._of_file(self.file, "--kernel")
        if (builder := self._builder(case)) is not None:
            return self._built(builder, case)
        if case.config.ktest:
            return self._tested(chosen, case)
        guest = self.guest.current
        assert guest.kernel is not None
        if is_guest(chosen):
            return Kernel(guest.kernel, guest.digests["kernel"])
        return self._of_file(guest.kernel, f"[guest.{self.arch}] kernel")

    def _tested(self, chosen: object, case: Case) -> Kernel:
        """Return the kernel of a ktest case that no command builds: a file of the workspace. Raises `ConfigError` without one."""
        if isinstance(chosen, str) and not is_guest(chosen):
            return self._of_file(self.workspace.root / chosen, f"[guest.{self.arch}] kernel")
        what = "has no kernel of its own to test: [qcase.kernel] has no build, and [guest] kernel is no file and no build"
        hint = f"[qcase.kernel] build and output, or [guest.{self.arch}] kernel = {{ build, output }}"
        raise ConfigError([Problem(what, self.workspace.relative(case.config_path), key="qcase.pipeline", hint=hint)])

    def _built(self, builder: kernel_build.Builder, case: Case) -> Kernel:
        def say(what: str) -> None:
            self.emit(events.PhaseStarted(case.display_name, Phase.PREPARE, what))

        def line(said: str) -> None:
            self.emit(events.ConsoleLine(case.display_name, said))

        began = time.monotonic()
        group = self.build_group(case)
        try:
            kernel = builder.kernel(group, say, line)
        except KernelError as error:  # its own line has told it: no case repeats it
            from qcase.guests import kernel_build

            log = f": see {kernel_build.log_of(group, self.workspace.root)[1]}" if error.log else ""
            raise KernelError(f"the kernel of {group.shown} was not built{log}", of_case=case.config.ktest) from None
        finally:
            self.waits[case.display_name] = self.waited(case) + time.monotonic() - began
        if self._of_strangers:  # the build may have replaced files in its writable folders by links
            trust.check(self.workspace)
            trust.check_case(case, self.workspace)
        return kernel

    def _begin(self, group: kernel_build.Group) -> None:
        self.emit(events.KernelBuildStarted(group.shown))

    def _end(self, group: kernel_build.Group, seconds: float, error: KernelError | InfraError | None) -> None:
        """Tell that a build has ended. Its error is told here, once for all cases."""
        from qcase.guests import kernel_build

        log, shown = kernel_build.log_of(group, self.workspace.root)
        result = KernelBuildResult(group.shown, group.arch, seconds, log=shown if seconds else "")
        if error is not None:
            said = getattr(error, "log", "")
            what = error.what if error.where == f"the kernel of {group.shown}" or not error.where else str(error)
            first = kernel_build.first_error_in(log) if said else ""
            hint = "" if shown in error.hint else error.hint
            details = "\n".join(said.splitlines()[-_DETAILS:])
            result = replace(result, error=what, hint=hint, first_error=first, details=details)
        self.emit(events.KernelBuildFinished(result))

    def _of_file(self, path: Path, where: str) -> Kernel:
        """Return the kernel in a file. The file is hashed once per state of its stat data: a user may rebuild it during a run.

        Raises `UsageError` for an unusable file.
        """
        try:
            return self.once.of_file("kernel", path, lambda: kernel_files.of_file(path, self.arch, where))
        except InfraError as error:
            raise UsageError(error.what, where=f"{where} {path}") from None

    def _unpacked(self, kernel: Kernel, case: Case) -> Kernel:
        """Return a kernel that QEMU can load directly: the payload of an EFI zboot file, else the kernel as it is."""
        guest = None if case.config.ktest else self.guest.current
        if guest is not None and kernel.path == guest.kernel and kernel.path.name in guest.digests:
            return kernel  # a built-in kernel, unpacked after its download: a warm run does not read the file

        if not self.once.get(f"packed kernel {kernel.path} {kernel.sha256}", lambda: kernel_files.is_zboot(kernel.path)):
            return kernel
        made = kernel_files.folder(self.workspace.root) / kernel.sha256 / f"{kernel.path.name}.unpacked"

        def make(staged: Path) -> None:
            staged.write_bytes(kernel_files.unpack_zboot(kernel_files.content(kernel), str(kernel.path)))

        return self._derived(made, make, str(kernel.path))

    def _derived(self, made: Path, make: Callable[[Path], object], where: str) -> Kernel:
        """Return a kernel derived from another one; `make` writes the file `made`.

        Raises `UsageError` if the result is no kernel for `arch`.
        """
        sha256 = self._kept(made, make)
        if wrong := kernel_files.mismatch(made, self.arch):
            raise UsageError(f"{made} {wrong}", where=where, hint="take another file, or another --arch")
        return Kernel(made, sha256)

    def _kept(self, made: Path, make: Callable[[Path], object]) -> str:
        """Make the file `made` from a kernel if it is missing or changed; return its sha256. An error is cached for all cases.

        Each call checks the file again, because a run may take hours.
        """
        from qcase.guests import kernel_copies

        self.once.get(f"kept {made}", lambda: kernel_copies.keep(made, make, self._warn))
        return kernel_copies.keep(made, make, self._warn)

    def _warn(self, what: str) -> None:
        self.emit(events.Warned(what))

    @property
    def _firmware(self) -> Firmware:
        return firmware.current(self._found_firmware)

    @shared_property
    def _found_firmware(self) -> Firmware:
        from qcase.vm import machine

        firmware.check_qemu(self.arch, machine.version(self.arch))
        files = ingredients.guest_files(self.workspace, self.arch)
        if "firmware" not in files:
            return firmware.find(self.arch, self.environ)
        return firmware.named(files["firmware"], files.get("firmware_vars"), self.arch)

    def _builder(self, case: Case) -> kernel_build.Builder | None:
        """Return the builder of a case's kernel; None if no command builds it."""
        recipe = ktest_table.recipe(case.config.own_kernel) or self.workspace.config.guest[self.arch].kernel
        return (
            self.once.get(f"builder of {recipe}", lambda: self._new_builder(recipe)) if isinstance(recipe, KernelBuild) else None
        )

    def _new_builder(self, recipe: KernelBuild) -> kernel_build.Builder:
        from qcase.guests import kernel_build

        tools = kernel_build.Tools(
            self.workspace.root,
            self.environ,
            self.engine,
            lambda name: self.toolchains.image(name).id,
            self._warn,
            self._begin,
            self._end,
            self._of_strangers,
            lambda: ingredients.closed(self.workspace, self.arch),
        )
        return kernel_build.Builder(recipe, tools)

    def builds_for_strangers(self, cases: Iterable[object]) -> bool:
        """Tell whether a run of cases builds a stranger's kernels. A build may exchange files that another case names."""
        kernel = self.workspace.config.guest[self.arch].kernel
        own = any(isinstance(case, Case) and case.config.own_kernel for case in cases)
        return self._of_strangers and self.file is None and (own or isinstance(kernel, KernelBuild))

    @property
    def _of_strangers(self) -> bool:
        return self.workspace.config.run.trust == "sandboxed"
