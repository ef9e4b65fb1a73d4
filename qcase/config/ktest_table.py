"""Rules of `[qcase] pipeline = "ktest"`: a case that is a kernel's own tests, with the kernel built for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator

from qcase.config.fields import Model, Words
from qcase.config.workspace_file import KernelBuild, KernelText, check_where

if TYPE_CHECKING:
    from qcase.config.case_file import CaseFile, Wrong

Named = Literal["ktest"]


class KernelTable(Model):
    """Table `[qcase.kernel]`: the command that builds the kernel of this case, in place of `[guest.<arch>] kernel`.

    `args`: the words that `${args}` stands for, in this command or in that of the guest.
    """

    build: KernelText | None = None
    output: KernelText | None = None
    where: Annotated[str, AfterValidator(check_where)] = "host"
    args: Words = ()


def checked(file: CaseFile, wrong: Wrong) -> dict[str, Any]:
    """Return the keys of `CaseConfig` for the kernel of a case."""
    table, place = file.qcase.kernel, ("qcase", "kernel")
    is_ktest = file.qcase.pipeline is not None
    if not is_ktest and table != KernelTable():
        wrong(place, 'needs [qcase] pipeline = "ktest"', "a kernel that several cases boot is that of [guest.<arch>]")
    if is_ktest:
        _check_neighbours(file, wrong)
    if (table.build is None) is not (table.output is None):
        lacks, why = ("output", "the file that it leaves") if table.output is None else ("build", "the command that makes it")
        wrong(place, f"needs {lacks}: {why}")
    if table.build is None and table.where != "host":
        wrong((*place, "where"), "needs build: the command that is run there", "[guest.<arch>] kernel has a where of its own")
    if table.build is not None and table.args and "${args}" not in table.build:
        wrong((*place, "args"), "are not used: the command has no ${args}", "write ${args} where they are to stand")
    own = () if table.build is None or table.output is None else (table.build, table.output, table.where)
    return {"ktest": is_ktest, "own_kernel": own, "kernel_args": table.args}


def _check_neighbours(file: CaseFile, wrong: Wrong) -> None:
    """Check that nothing stands beside the pipeline that needs a root filesystem."""
    hint = "a ktest case boots its kernel alone; make a case of its own of what needs a guest"
    for key in ("test_commands", "grouped_qemu_profiles"):
        if getattr(file, key):
            wrong((key,), 'cannot stand beside pipeline = "ktest"', hint)
    for key in ("packages", "rootfs", "install"):
        if getattr(file.qcase, key):
            wrong(("qcase", key), 'cannot stand beside pipeline = "ktest"', hint)


def recipe(own: tuple[str, ...]) -> KernelBuild | None:
    """Return the build of a case's own kernel, from `CaseConfig.own_kernel`."""
    if not own:
        return None
    build, output, where = own
    return KernelBuild(build=build, output=output, where=where)
