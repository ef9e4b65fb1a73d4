"""Files found, read and resolved: `qcase.toml` and `qemu-<arch>.toml`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from qcase.config import (
    exit_table,
    ktest_table,
    matrix,
    qemu_options,
    results_table,
    root_disk,
    services_table,
    skip_table,
    steps_table,
)
from qcase.config.case_file import CaseConfig, CaseFile, Placeholders, QcaseTable, Wrong, memory, refuse_environment, smp
from qcase.config.known_file import Known, KnownFile, KnownTable, known_of
from qcase.config.patterns import PatternError, compile_pattern
from qcase.config.toml_document import Document, config_error, read
from qcase.config.workspace_file import FORMS, WORKSPACE_FILE, M, WorkspaceConfig, workspace_model
from qcase.errors import Problem, UsageError
from qcase.text import any_of, nearest, shown

MOST_PROBLEMS = 50  # of one kind in a file: each takes a while to explain, and nobody reads so many


def find_workspace(start: Path) -> Path:
    """Return the nearest folder from `start` upwards that holds a `qcase.toml`. Raises `UsageError` if there is none."""
    start = start.resolve()
    for folder in (start, *start.parents):
        try:
            if (folder / WORKSPACE_FILE).is_file():
                return folder
        except OSError:  # an unreadable folder is no workspace
            continue
    raise UsageError(
        f"no {WORKSPACE_FILE} in {start} or above",
        hint="go to the workspace, name it with --workspace, or make one with `qcase init`",
    )


def load_workspace_config(path: Path) -> WorkspaceConfig:
    """Load `qcase.toml` into its models. Raises `ConfigError` with all its faults."""
    document = read(path, Path.cwd())
    model, problems, _ = _validate(workspace_model(document.data), document)
    if problems:
        raise config_error(problems)
    assert model is not None
    if not model.suite.name:
        model = model.model_copy(update={"suite": model.suite.model_copy(update={"name": path.resolve().parent.name})})
    return model


def load_case_config(path: Path, *, placeholders: Placeholders, base: Path | None = None) -> CaseConfig:
    """Load one `qemu-<arch>.toml`; unknown keys go into its `warnings`. Raises `ConfigError` with all its faults.

    `base`: the file of a group, whose keys count where this one does not have them.
    """
    document = read(path, placeholders.workspace)
    if base is not None:
        inherited = {
            key: value for key, value in read(base, placeholders.workspace).data.items() if key != "grouped_qemu_profiles"
        }
        document = replace(document, data={**inherited, **document.data})
    placeholders = replace(placeholders, more={"case": path.parent.name, **placeholders.more})
    unknown = [key for key in document.data if key not in CaseFile.model_fields]
    warnings = tuple(
        document.problem((key,), "unknown key", nearest(key, CaseFile.model_fields)) for key in unknown[:MOST_PROBLEMS]
    )
    warnings += _others(document, len(unknown))
    model, problems, broken = _validate(CaseFile, document)
    if model is None:  # check the rest all the same, so that all errors are reported at once
        rest = {key: value for key, value in document.data.items() if key not in broken}
        model = CaseFile.model_validate(rest)
    config = _resolve_case(model, document, placeholders, frozenset(broken), problems, warnings)
    config = replace(config, known=_entries(model.qcase.known, document, ("qcase", "known")))
    config = replace(config, **_skips(model.qcase, config, document, placeholders, problems))
    if problems:
        # A warning is often the cause: a misspelt `success_regex` leaves the case without one.
        raise config_error([*problems, *warnings])
    return config


def load_known(path: Path, base: Path) -> tuple[Known, ...]:
    """Load a file of known failures; empty if there is none. Raises `ConfigError` with all its faults."""
    if not path.exists() and not path.is_symlink():
        return ()
    document = read(path, base)
    model, problems, _ = _validate(KnownFile, document)
    if problems:
        raise config_error(problems)
    assert model is not None
    return _entries(model.known, document, ("known",))


def _entries(tables: Sequence[KnownTable], document: Document, loc: tuple[str, ...]) -> tuple[Known, ...]:
    places = (document.problem((*loc, at), "") for at in range(len(tables)))
    return tuple(known_of(table, f"{place.file}:{place.line}") for table, place in zip(tables, places, strict=True))


def _resolve_case(
    file: CaseFile,
    document: Document,
    placeholders: Placeholders,
    broken: frozenset[str],
    problems: list[Problem],
    warnings: tuple[Problem, ...],
) -> CaseConfig:
    """Turn `file` into a case's model. Adds faults to `problems`; rules that depend on a key in `broken` are skipped."""

    def wrong(loc: tuple[str | int, ...], what: str, hint: str = "") -> None:
        problems.append(document.problem(loc, what, hint))

    args = tuple(placeholders.replace(arg) for arg in (*file.args, *(("-append", file.cmdline) if file.cmdline else ())))
    prefix, command = (placeholders.replace(text).strip() or None for text in (file.shell_prefix, file.shell_init_cmd))
    test_commands = tuple(text.strip() for text in file.test_commands)
    _check_words(args, prefix, command, test_commands, broken, wrong, semihosting=bool(file.qcase.exit.words))
    patterns = _checked_patterns(file, placeholders, wrong)
    results, markers = results_table.checked(file, test_commands, command, wrong)
    steps = _checked_steps(file, placeholders, wrong)
    if not (_decides(document, patterns["success_regex"] or test_commands) or broken & {"success_regex", "test_commands"}):
        wrong(("success_regex",), "no success_regex: the case can never pass", "say what the guest prints when all is well")
    return CaseConfig(
        args=args,
        shell_prefix=prefix,
        shell_init_cmd=command,
        test_commands=test_commands,
        success_regex=patterns["success_regex"],
        fail_regex=patterns["fail_regex"],
        timeout=file.timeout or None,
        match=file.qcase.match,
        match_from=file.qcase.match_from,
        results=results,
        markers=markers,
        steps_as_json=steps,
        network=file.qcase.network,
        kernel_trouble=file.qcase.kernel_trouble,
        boot_timeout=file.qcase.boot_timeout or None,
        command_timeout=file.qcase.command_timeout or None,
        idle_timeout=file.qcase.idle_timeout or None,
        **{key: getattr(file.qcase, key) for key in _AS_GIVEN},
        install=tuple(f"{folder.rstrip('/')}\t{pattern}" for folder, files in file.qcase.install.items() for pattern in files),
        build_system=() if file.qcase.build_system is None else (file.qcase.build_system,),
        preserve_commands=file.grouped_command_selection == "preserve_all",
        profiles=tuple("\0".join((one.name, one.subcase_prefix, one.config)) for one in file.grouped_qemu_profiles),
        kernel_env=tuple(sorted(f"{name}={value}" for name, value in file.qcase.kernel_env.items())),
        matrix=_machines(file, args, placeholders, wrong),
        smp=smp(args),
        to_bin=file.to_bin,
        uefi=file.uefi,
        memory=memory(args),
        **ktest_table.checked(file, wrong),
        exits=_exits(file, args, on_console=bool(patterns["success_regex"] or results), wrong=wrong),
        services=_services(file, wrong),
        warnings=warnings,
    )


def _skips(
    table: QcaseTable, config: CaseConfig, document: Document, placeholders: Placeholders, problems: list[Problem]
) -> dict[str, Any]:
    """Return what skips a case, and how one of its tests is selected. Adds faults to `problems`."""

    def wrong(loc: tuple[str | int, ...], what: str, hint: str = "") -> None:
        problems.append(document.problem(loc, what, hint))

    patterns = skip_table.checked(
        table.skip,
        placeholders.replace,
        wrong,
        is_group=config.is_grouped,
        has_results=bool(config.results),
        success=config.success_regex,
    )
    select = placeholders.replace(table.select or "").strip()
    if select and results_table.TEST not in select:
        what = f"has no {results_table.TEST}, where the name of the test is to stand"
        wrong(("qcase", "select"), what, f'such as "prog --only {results_table.TEST}"')
    if select and not config.results:
        wrong(
            ("qcase", "select"), "needs results or markers: else no test inside is known", "say how its tests tell their results"
        )
    return {"select": select, "requires": table.requires, "skip": patterns, "skip_status": table.skip.status}


# Keys of `[qcase]` that a case has as they are.
_AS_GIVEN = (
    *("reset", "branch", "tags", "packages", "rootfs", "retries", "build"),
    *("cargo", "cargo_options", "cmake", "meson", "configure", "make"),
)


def _check_words(
    args: tuple[str, ...],
    prefix: str | None,
    command: str | None,
    test_commands: tuple[str, ...],
    broken: frozenset[str],
    wrong: Wrong,
    *,
    semihosting: bool = False,
) -> None:
    """Check what a case gives to QEMU and types into the guest. `semihosting`: it is allowed, for QEMU's end."""
    for key, value in (("shell_prefix", prefix), ("shell_init_cmd", command)):
        if value and "\0" in value:
            wrong((key,), "must not contain a NUL character")
    for key, values in (("args", args), ("test_commands", test_commands)):
        for index, value in enumerate(values):
            if "\0" in value:
                wrong((key, index), "must not contain a NUL character")
    for index, text in enumerate(test_commands):
        if not text:
            wrong(("test_commands", index), "must not be empty")
    try:
        options = qemu_options.split(args)
        root_disk.refuse_writers(options, semihosting=semihosting)
        root_disk.root(options)
    except qemu_options.ArgumentError as e:
        places = [at for at, arg in enumerate(args) if arg in (e.option, e.option.partition(" ")[0])]
        wrong(("args", *places[:1]), str(e), e.hint)
    if test_commands and command:
        wrong(("shell_init_cmd",), "cannot stand beside test_commands: the grouped runner is the command")
    if command and not prefix and "shell_prefix" not in broken:
        wrong(("shell_init_cmd",), "needs shell_prefix, the prompt to wait for before it is typed")


def _decides(document: Document, named: tuple[str, ...]) -> bool:
    """Tell whether a file says what passes the case, however well: `named` patterns or commands, inner tests, steps."""
    return bool(named) or any(table.is_there(document.data) for table in (results_table, steps_table, exit_table))


def _checked_steps(file: CaseFile, placeholders: Placeholders, wrong: Wrong) -> tuple[str, ...]:
    """Return the steps of a case, and check that nothing stands beside them that they say themselves."""
    steps = steps_table.checked(file.shell_check_steps, file.qcase.steps, placeholders.replace, wrong)
    if not steps:
        return ()
    steps_table.check_consoles(steps, file.args, wrong)
    table = "shell_check_steps" if file.shell_check_steps else "qcase.steps"
    for key in ("shell_prefix", "shell_init_cmd", "success_regex", "test_commands"):
        if getattr(file, key):
            wrong((key,), f"cannot stand beside [[{table}]]", "say it in a step")
    if file.qcase.reset and steps_table.stops_at_reset(steps):
        wrong(("qcase", "reset"), "cannot stand beside a step with expect", "leave it out: that step lets the guest reset")
    for key in ("results", "markers"):
        if getattr(file.qcase, key) not in (None, type(file.qcase.markers)()):
            hint = "set results in the step whose command has tests: that takes [[qcase.steps]], and no markers"
            wrong(("qcase", key), f"cannot stand beside [[{table}]]", hint)
    return tuple(step.encoded() for step in steps)


def _machines(file: CaseFile, args: tuple[str, ...], placeholders: Placeholders, wrong: Wrong) -> tuple[str, ...]:
    """Return the machines of `[[qcase.matrix]]` as `CaseConfig` has them."""

    def fault(row: int, what: str, hint: str) -> None:
        wrong(("qcase", "matrix", row), what, hint)

    found = matrix.machines(file.qcase.matrix, args, placeholders.replace, fault)
    return tuple("\0".join((name, *words)) for name, words in found)


def _services(file: CaseFile, wrong: Wrong) -> tuple[str, ...]:
    """Return the services of the host. Refuses to keep what a guest writes to its disks."""
    hint = "leave it out: a test's writes are thrown away"
    if not file.snapshot:
        wrong(("snapshot",), "must not be false: a guest would write into an image that other cases boot", hint)
    if file.rootfs_write_policy == "persist":
        wrong(("rootfs_write_policy",), 'must be "discard": a guest would write into an image that other cases boot', hint)
    return services_table.checked(file.host_http_server, file.qcase.services, file.qcase.network, wrong)


def _exits(file: CaseFile, args: tuple[str, ...], *, on_console: bool, wrong: Wrong) -> tuple[str, ...]:
    """Return what an end of QEMU says of the case. `on_console`: the console has to say something besides."""
    tables = (("test_commands", file.test_commands), ("shell_check_steps", file.shell_check_steps), ("steps", file.qcase.steps))
    semihosting = any("semihosting" in arg for arg in args)
    if semihosting and (file.qcase.services or file.host_http_server.model_fields_set):
        wrong(("args",), "semihosting cannot stand beside services of the host", "QEMU is confined then, and starts no program")
    return exit_table.checked(
        file.qcase.exit,
        wrong,
        beside=next((key for key, value in tables if value), ""),
        has_skip=bool(file.qcase.skip.regex),
        on_console=on_console,
        semihosting=semihosting,
    )


def _checked_patterns(file: CaseFile, placeholders: Placeholders, wrong: Wrong) -> dict[str, tuple[str, ...]]:
    """Return the patterns of both outcomes with their placeholders replaced, after a check that they compile."""
    if placeholders.environment is None:
        refuse_environment(file, wrong)
    patterns: dict[str, tuple[str, ...]] = {}
    for key, values, outcome in (("success_regex", file.success_regex, "pass"), ("fail_regex", file.fail_regex, "fail")):
        patterns[key] = tuple(placeholders.replace(value) for value in values)
        for index, pattern in enumerate(patterns[key]):
            try:
                compile_pattern(pattern, would=outcome)
            except PatternError as e:
                wrong((key, index), e.what, e.hint)
    return patterns


def _validate(model: type[M], document: Document) -> tuple[M | None, list[Problem], set[str]]:
    """Validate a document. Returns the model or None, the problems, and the top-level keys with problems."""
    try:
        return model.model_validate(document.data), [], set()
    except ValidationError as e:
        # A default that follows from a broken key is no error of its own.
        errors = [error for error in e.errors(include_url=False) if error["type"] != "default_factory_not_called"]
    problems = [*(_problem(model, document, error) for error in errors[:MOST_PROBLEMS]), *_others(document, len(errors))]
    return None, problems, {str(error["loc"][0]) for error in errors}


def _others(document: Document, count: int) -> tuple[Problem, ...]:
    return (document.problem((), f"has {count - MOST_PROBLEMS} more of these"),) if count > MOST_PROBLEMS else ()


def _problem(model: type[BaseModel], document: Document, error: ErrorDetails) -> Problem:
    place, given = error["loc"], error.get("input")
    loc = tuple(part for part in place if part not in FORMS and part != "[key]")
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "extra_forbidden":
        return document.problem(loc, "unknown key", nearest(str(loc[-1]), _fields_at(model, place[:-1])))
    if kind == "qcase":
        return document.problem(loc, context["what"], context["hint"])
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        hint = nearest(given, choices, fallback=False) if isinstance(given, str) else ""
        return document.problem(loc, f"must be {any_of(choices)}, not {shown(given)}", hint)
    if kind == "missing":
        return document.problem(loc, "is missing")
    if kind in _SHAPES:
        return document.problem(loc, f"must be {_SHAPES[kind]}, not {shown(given)}")
    if kind in ("greater_than", "greater_than_equal"):
        bound = f"greater than {context['gt']:g}" if kind == "greater_than" else f"{context['ge']:g} or more"
        return document.problem(loc, f"must be {bound}, not {shown(given)}")
    if kind == "too_short":
        return document.problem(loc, "must not be empty", "leave it out")
    if kind == "less_than_equal":
        return document.problem(loc, f"must be {context['le']:g} or less, not {shown(given)}")
    return document.problem(loc, error["msg"])


_SHAPES: Mapping[str, str] = {
    "string_type": "a string",
    "bool_type": "true or false",
    "float_type": "a number",
    "date_type": "a date such as 2027-01-31",
    "int_type": "a whole number",
    "finite_number": "a finite number",
    "tuple_type": "an array of strings",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
}


def _fields_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> Iterable[str]:
    named = False  # the next key is one of a person's own, as in [suites.<name>]
    for key, form in zip(loc, (*loc[1:], ""), strict=False):
        if key in FORMS or isinstance(key, int) or named:
            named = False
            continue
        annotation = FORMS.get(str(form)) or _fields(model)[str(key)].annotation
        named = get_origin(annotation) is dict
        if get_origin(annotation) in (tuple, dict, Union, UnionType):
            annotation = next(one for one in reversed(get_args(annotation)) if one not in (Ellipsis, type(None)))
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return _fields(model)


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}
