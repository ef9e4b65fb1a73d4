"""`[[grouped_qemu_profiles]]`: subcases of a group that run with another file than the group's own.

    qemu-<arch>.toml     the group, without the subcases of the profiles      <group>
    config               those whose names begin with subcase_prefix          <group>-<name>

Each is a case with a name of its own. A `config` that is named like a variant is no variant besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from qcase.errors import ConfigError, Problem
from qcase.host import beneath
from qcase.model import Pipeline
from qcase.suite.case_file_cache import Reader
from qcase.suite.cases import BrokenCase, Case, Subcase, Workspace
from qcase.suite.scan import PROJECT_FILE
from qcase.text import printable


def reads_variable(case: Case, variable: str) -> bool:
    """Tell whether the CMake project of a group names a variable, in its own file or in one that it may include."""
    files = [case.path / PROJECT_FILE, *case.path.glob("*.cmake"), *case.path.glob("*/*.cmake")]
    return any(variable in beneath.text(file) for file in files if file.is_file())


def of_group(case: Case, workspace: Workspace, reader: Reader) -> tuple[Case, ...]:
    """Return the cases of a group with profiles; the case itself without any. Raises `ConfigError` for a wrong profile."""
    if not case.config.profiles:
        return (case,)

    def wrong(what: str, hint: str = "") -> ConfigError:
        return ConfigError([Problem(what, workspace.relative(case.config_path), key="grouped_qemu_profiles", hint=hint)])

    if case.pipeline is not Pipeline.GROUPED:
        raise wrong("needs test_commands: only a group has subcases")
    rest = list(case.subcases)
    found: list[Case] = []
    for name, prefix, file in (profile.split("\0") for profile in case.config.profiles):
        own = [subcase for subcase in rest if subcase.name.startswith(prefix)]
        path = case.path / file
        if not own:
            raise wrong(f"no subcase is left for the profile {name!r}: none begins with {prefix!r}")
        if not path.is_file():
            raise wrong(f"the profile {name!r} has no file {file!r}", "it is looked for in the folder of the case")
        rest = [subcase for subcase in rest if subcase not in own]
        names = {key: f"{getattr(case, key)}-{name}" for key in ("name", "display_name", "below")}
        part = replace(case, name=names["name"], display_name=names["display_name"], below=names["below"], profile=name)
        part = replace(part, config_path=path, group_config=case.config_path, config=reader.load_over(case.config_path, path))
        found.append(_with(part, own, workspace, wrong))
    if rest:
        return (_with(case, rest, workspace, wrong), *found)
    lost = [command for command in case.config.test_commands if all(command not in one.config.test_commands for one in found)]
    if lost:
        what = f"all subcases are those of profiles, and no file of theirs has the command {printable(lost[0])!r}"
        raise wrong(what, "it would never run: give it to the config of a profile")
    return tuple(found)


def _with(case: Case, subcases: Sequence[Subcase], workspace: Workspace, wrong: Callable[[str], ConfigError]) -> Case:
    """Return the case with some of its subcases. A CMake project is told which ones of its parts are wanted."""
    parts = [subcase.name for subcase in subcases if subcase.kind is Pipeline.C]
    config = replace(case.config, profiles=())
    if (case.path / PROJECT_FILE).is_file():
        variable = workspace.config.script_env.grouped_c_subcases
        if not reads_variable(case, variable):
            what = f"needs a project that builds only some subcases: {PROJECT_FILE} does not read {variable}"
            raise wrong(what)
        config = replace(config, cmake=(f"-D{variable}={';'.join(parts)}", *config.cmake))
    return replace(case, subcases=tuple(subcases), config=config)


def without_doubles(
    loaded: Iterable[tuple[Path, tuple[Case | BrokenCase, ...]]],
) -> list[tuple[Path, tuple[Case | BrokenCase, ...]]]:
    """Return the files with the cases of each, without the files of profiles, which are no variants."""
    loaded = list(loaded)
    profiled = {case.config_path for _, cases in loaded for case in cases if isinstance(case, Case) and case.profile}
    return [(path, cases) for path, cases in loaded if path not in profiled]
