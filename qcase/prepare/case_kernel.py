"""The kernel and the firmware that a case boots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qcase import events
from qcase.arch import Arch
from qcase.config import qemu_options
from qcase.config.workspace_file import KernelBuild, is_guest
from qcase.disk import fat
from qcase.errors import InfraError, UsageError
from qcase.events import Emit
from qcase.guests import kernel_build, kernel_copies, kernel_files
from qcase.guests.kernel_files import Kernel
from qcase.inputs import ingredients, trust
from qcase.model import Phase
from qcase.prepare.base_guest import BaseGuest, memory_of
from qcase.prepare.once import Once, shared_property
from qcase.prepare.prepared import Uefi
from qcase.prepare.toolchain_choice import ToolchainChoice
from qcase.suite.cases import Case, Workspace
from qcase.vm import firmware, machine
from qcase.vm.accelerator import Proof, obstacle, prove
from qcase.vm.arguments import MachineSpec
from qcase.vm.firmware import Firmware

if TYPE_CHECKING:
    from qcase.containers.engine import Engine

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

    def kernel(self, case: Case) -> Kernel:
        """Return the kernel for a case: the file of `--kernel`, else the result of a kernel build, else the guest's kernel.

        Raises `KernelError` for a failed build, for each case of the build group; `UsageError` for a file that is no kernel.
        """
        kernel = self._kernel(case)
        if not case.config.to_bin:
            return kernel if case.config.uefi else self._unpacked(kernel)
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
        guest = self.guest.current
        if guest.initrd is not None or guest.append or any(o.kind == "append" for o in qemu_options.split(case.config.args)):
            return Uefi(self._firmware, None)
        made = kernel_files.folder(self.workspace.root) / kernel.sha256 / f"esp-{self.arch}.img"

        def make(staged: Path) -> None:
            staged.write_bytes(fat.image({program: kernel_files.content(kernel)}))

        self._kept(made, make)
        return Uefi(self._firmware, made)

    def proof_of_kvm(self, case: Case, kernel: Kernel, spec: MachineSpec) -> Proof | None:
        """Test whether KVM boots a kernel to a prompt. A built-in guest boots as it is, any other one with the case's machine.

        None if the case has no prompt and no obstacle to KVM is known: then a test boot cannot tell.
        """
        config = self.workspace.config.guest[self.arch]
        memory = memory_of(self.workspace, self.guest.store)
        if self.file is None and is_guest(config.kernel) and config.initrd is None:
            rootfs = self.guest.current.rootfs
            plain = replace(spec, args=("-nographic", "-m", "256M"), image=rootfs, network="none", processors=1)
            plain = replace(plain, initrd=self.guest.current.initrd, root_serial="")
            return prove(plain, kernel.sha256, f"root@{config.hostname}:", memory)
        if case.config.first_prompt is None:
            why = obstacle(self.arch)
            return Proof(why) if why else None
        return prove(spec, kernel.sha256, case.config.first_prompt, memory)

    def build_group(self, case: Case) -> kernel_build.Group:
        """Return the key of a kernel build: the case's build group and the nearest build-<target>.toml above the case."""
        configs = ingredients.build_configurations(case, self.workspace, self.target)
        return kernel_build.Group(
            case.build_group,
            next((path for path in configs if path.is_file()), None),
            self.arch,
            self.target,
            case.config.kernel_env,
        )

    def _kernel(self, case: Case) -> Kernel:
        chosen = self.workspace.config.guest[self.arch].kernel
        if self.file is not None:
            return self._of_file(self.file, "--kernel")
        if self._builder is not None:
            return self._built(self._builder, case)
        guest = self.guest.current
        assert guest.kernel is not None
        if is_guest(chosen):
            return Kernel(guest.kernel, guest.digests["kernel"])
        return self._of_file(guest.kernel, f"[guest.{self.arch}] kernel")

    def _built(self, builder: kernel_build.Builder, case: Case) -> Kernel:
        def say(what: str) -> None:
            self.emit(events.PhaseStarted(case.display_name, Phase.PREPARE, what))

        def line(said: str) -> None:
            self.emit(events.ConsoleLine(case.display_name, said))

        kernel = builder.kernel(self.build_group(case), say, line)
        if self._of_strangers:  # the build may have replaced files in its writable folders by links
            trust.check(self.workspace)
            trust.check_case(case, self.workspace)
        return kernel

    def _of_file(self, path: Path, where: str) -> Kernel:
        """Return the kernel in a file. The file is hashed once per state of its stat data: a user may rebuild it during a run.

        Raises `UsageError` for an unusable file.
        """
        try:
            return self.once.of_file("kernel", path, lambda: kernel_files.of_file(path, self.arch, where))
        except InfraError as error:
            raise UsageError(error.what, where=f"{where} {path}") from None

    def _unpacked(self, kernel: Kernel) -> Kernel:
        """Return a kernel that QEMU can load directly: the payload of an EFI zboot file, else the kernel as it is."""
        guest = self.guest.current
        if kernel.path == guest.kernel and kernel.path.name in guest.digests:
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
        self.once.get(f"kept {made}", lambda: kernel_copies.keep(made, make, self._warn))
        return kernel_copies.keep(made, make, self._warn)

    def _warn(self, what: str) -> None:
        self.emit(events.Warned(what))

    @property
    def _firmware(self) -> Firmware:
        return firmware.current(self._found_firmware)

    @shared_property
    def _found_firmware(self) -> Firmware:
        firmware.check_qemu(self.arch, machine.version(self.arch))
        files = ingredients.guest_files(self.workspace, self.arch)
        if "firmware" not in files:
            return firmware.find(self.arch, self.environ)
        return firmware.named(files["firmware"], files.get("firmware_vars"), self.arch)

    @shared_property
    def _builder(self) -> kernel_build.Builder | None:
        recipe = self.workspace.config.guest[self.arch].kernel
        if not isinstance(recipe, KernelBuild):
            return None
        tools = kernel_build.Tools(
            self.workspace.root,
            self.environ,
            self.engine,
            lambda name: self.toolchains.image(name).id,
            self._warn,
            self._of_strangers,
            lambda: ingredients.closed(self.workspace, self.arch),
        )
        return kernel_build.Builder(recipe, tools)

    @property
    def builds_for_strangers(self) -> bool:
        """Tell whether the run builds a stranger's kernels. A build may exchange files that another case names."""
        kernel = self.workspace.config.guest[self.arch].kernel
        return self._of_strangers and self.file is None and isinstance(kernel, KernelBuild)

    @property
    def _of_strangers(self) -> bool:
        return self.workspace.config.run.trust == "sandboxed"
