"""Schemas of `qcase.toml` and `qemu-<arch>.toml`, for editors and for people: made from the models, never written twice.

    json_schema(name)   JSON Schema, with which editors complete and check these files
    toml(name)          all keys with their defaults, as the configuration page shows them
    commented(…)        the same with every key commented out, as `qcase init` writes it

What a key means stands in `MEANING`, by its path. A test sees that no key is without.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from qcase.arch import Arch
from qcase.config.case_file import CaseFile
from qcase.config.known_file import KnownFile
from qcase.config.toml_document import toml_key, toml_value
from qcase.config.workspace_file import WorkspaceConfig, added_toolchains, guest_words, whole_model
from qcase.errors import UsageError

_WIDTH = 130  # columns of a line of TOML with its meaning behind it
_COLUMN = 58  # where meanings stand at the most

# What every qcase knows, in the order in which `qcase schema` names them.
MODELS: Mapping[str, type[BaseModel]] = {"qcase": WorkspaceConfig, "qemu": CaseFile, "known": KnownFile}

TITLES: Mapping[str, str] = {"qcase": "qcase.toml", "qemu": "qemu-<arch>.toml", "known": "known.toml"}

# A table of one layout that stands under several names is shown once.
_TWINS = {f"guest.{arch}": "guest.x86_64" for arch in Arch if arch is not Arch.X86_64}

MEANING: Mapping[str, str] = {
    "suite": "Which cases there are.",
    "suite.name": "the suite's name in reports; default: the folder's name",
    "suites": "[suites.<name>]: further suites, for --suite: root, default_group, and grouped, script_env, guest of their own",
    "suite.root": "the folder of the groups, relative to the workspace",
    "suite.default_group": "what `qcase run` runs without --group: a name, or a glob",
    "grouped": "The script that runs a grouped case's commands.",
    "grouped.prefix": "all that follows comes from it, unless set by name",
    "grouped.runner_name": "the script's file name, in /usr/bin",
    "grouped.runner_path": "how it is called",
    "grouped.begin_marker": "before a command",
    "grouped.passed_marker": "behind one that exited with 0",
    "grouped.failed_marker": "behind any other",
    "grouped.all_passed_marker": "at the end",
    "grouped.all_failed_marker": "likewise",
    "grouped.success_regex": "what a grouped case's success pattern becomes",
    "grouped.fail_regex": "read for each command; another one is looked for as well",
    "script_env": "The names of the variables that a case's scripts find.",
    "script_env.prefix": "all that follows comes from it, unless set by name",
    "script_env.staging_root": "the base image, unpacked",
    "script_env.case_dir": "the copy of the case's folder",
    "script_env.case_c_dir": "its c/",
    "script_env.case_work_dir": "for whatever a script makes",
    "script_env.case_build_dir": "where CMake builds",
    "script_env.case_overlay_dir": "what goes into the guest",
    "script_env.grouped_c_subcases": "a variable of CMake: the subcases that a group's project is to build, if not all",
    "cache": "What is kept from run to run.",
    "cache.env": "variables whose values enter every key, and which builds see",
    "cache.write": "auto | always | never",
    "cache.keep_images": "false: images live for one run, overlays are all that is stored",
    "cache.max_size": "of the store; what was not used for longest goes, after a run that added something",
    "cache.min_free": "on the store's disk, likewise; never more than a tenth of the disk",
    "toolchain": "The images in which cases are built.",
    "toolchain.c": "The compilers of the pipeline `c`.",
    "toolchain.c.compiler": "gcc | clang",
    "toolchain.rust": "The compilers of the pipeline `rust`.",
    "toolchain.rust.image": "a foreign image in place of qcase's own: name@sha256:<64 hex digits>",
    "toolchain.c.image": "a foreign image in place of qcase's own: name@sha256:<64 hex digits>",
    "toolchain.alpine": "What deals with packages.",
    "toolchain.alpine.image": "a foreign image in place of qcase's own: name@sha256:<64 hex digits>",
    "packages": "Where packages come from; default: from where the guest's base image says.",
    "packages.repositories": "addresses, or folders relative to the workspace",
    "packages.keys": "files of the keys that sign them",
    "hooks": "Scripts of the workspace, and what they see.",
    "hooks.prepare_staging_root": "a script, run in the staging root before anything else is",
    "hooks.guest_package_env": "variables that it, prebuild scripts and steps that deal with packages see",
    "run": "How cases are run.",
    "run.accel": "tcg | kvm | auto",
    "run.network": "restricted | user | none: what a network card of a guest reaches",
    "run.kernel_trouble": "warn | fail | ignore: when the guest's kernel reports an Oops, a warning, a lockup",
    "run.trust": "suite | sandboxed: whose the workspace is; QCASE_TRUST and --trust win over it",
    "run.tcg_threads": "auto | single | multi: the host threads of a guest with several processors, under TCG",
    "run.branch": "auto | never: whether cases of one machine go on from its state at the first read of the disk; an experiment",
    "run.timeout_scale": "multiplies every limit of time; QCASE_TIMEOUT_SCALE and --timeout-scale win over it",
    "guest": "What is booted, for each architecture.",
    "guest.x86_64": f"and {', '.join(arch for arch in Arch if arch is not Arch.X86_64)}",
    "guest.x86_64.rootfs": "<guests>, a path, or { url, sha256 }: an ext4 image",
    "guest.x86_64.kernel": "<guests>, a path, { url, sha256 }, or { build, output }",
    "guest.x86_64.initrd": "a path or { url, sha256 }; default: qcase's own with a built-in kernel, none with another",
    "guest.x86_64.hostname": "of the built-in guest; it stands in the prompt",
    "guest.x86_64.append": "added to the kernel's command line; must not contain the word panic",
    "guest.x86_64.firmware": "UEFI firmware, a path; default: what this machine has",
    "guest.x86_64.firmware_vars": "the template of its variables, a path; default: what this machine has for its own",
    "guest.x86_64.tcg_threads": "single | multi | auto; default: [run] tcg_threads",
    "guest.x86_64.disks": 'what stands in for the files that cases\' drives name: { "name.img" = as rootfs }',
    "known": "known failures: [[known]] with case, test, arch, reason, link, until, excuses",
    "args": "QEMU's arguments, at the beginning of its command line",
    "cmdline": "what is added to the kernel's command line",
    "uefi": "true: the kernel is an EFI application, and UEFI firmware starts it",
    "to_bin": "true: the ELF kernel is made a raw binary first",
    "shell_prefix": "the prompt to wait for: a literal text, anywhere in the output",
    "shell_init_cmd": "what is typed when the prompt has come",
    "test_commands": "commands of a grouped case, each one a subtest",
    "grouped_qemu_profiles": "other files for the subcases of a prefix: [[grouped_qemu_profiles]] name, subcase_prefix, config",
    "grouped_command_selection": "named | preserve_all: the commands for a subcase that is run alone",
    "success_regex": "patterns (RE2) that pass the case; ^ and $ are the ends of a line",
    "fail_regex": "patterns that fail it; they come first",
    "timeout": "seconds from QEMU's start to the verdict; 0: none",
    "shell_check_steps": "ostool's steps: [[shell_check_steps]] tables in place of prompt, command and success patterns",
    "snapshot": "true: what the guest writes is thrown away; false is refused",
    "rootfs_write_policy": "discard: likewise; persist is refused",
    "host_http_server": "An HTTP server of the host for the time of the case. The guest finds it at 10.0.2.2.",
    "host_http_server.bind": "read, and not used: no port of the host is opened",
    "host_http_server.port": "in the guest",
    "host_http_server.body": "what it answers",
    "host_http_server.body_size": "so many times `body_byte` in place of it",
    "host_http_server.body_byte": "a number from 0 to 255",
    "host_http_server.dir": "or the files of a folder, relative to the workspace",
    "qcase": "What only qcase knows.",
    "qcase.services": "more services of the host: [[qcase.services]] with kind, port, body, body_size, body_byte, folder, limit",
    "qcase.match": "any | all: how many of success_regex have to match",
    "qcase.match_from": "start | prompt: from where on the case's own patterns look",
    "qcase.results": "ktap | tap | kselftest | ltp | kunit | libtest | unity | auto: the results of tests inside the command",
    "qcase.steps": "steps, each a subtest: [[qcase.steps]] tables in place of prompt, command and success patterns",
    "qcase.markers": "Patterns (RE2) for the lines of such tests, in place of `results`. Groups: name, reason.",
    "qcase.markers.begin": "a test begins",
    "qcase.markers.pass": "it passed",
    "qcase.markers.fail": "it failed",
    "qcase.markers.skip": "it was skipped",
    "qcase.markers.summary": "the end, with what was counted. Groups: total, passed, failed, skipped",
    "qcase.known": "Known failures of the case or of tests inside: reason, test, link, until, excuses; also [[qcase.known]].",
    "qcase.select": 'the command for one of its tests, which `qcase run case::test` asks for: "prog --only {test}"',
    "qcase.requires": 'skipped without: kvm, network, a device of QEMU, "memory >= 4 GiB", "cpus >= 4", "qemu >= 8.2"',
    "qcase.skip": "What the guest says when a case cannot run there.",
    "qcase.skip.regex": "patterns (RE2) that skip the case, by the rules of success_regex",
    "qcase.skip.status": "statuses by which a command of a group says that it was skipped, such as 4",
    "qcase.exit": 'What the end of QEMU says of the case: statuses from 1 to 255, or "poweroff".',
    "qcase.exit.pass": "all is well; the case then waits for this end, and success patterns and results have to hold besides",
    "qcase.exit.fail": "a test failed",
    "qcase.exit.skip": "the case cannot run there",
    "qcase.network": "restricted | user | none; default: [run] network",
    "qcase.kernel_trouble": "warn | fail | ignore; default: [run] kernel_trouble",
    "qcase.boot_timeout": "seconds from QEMU's start to the prompt; 0: none",
    "qcase.command_timeout": "seconds from the prompt on, in a grouped case for each command by itself; 0: none",
    "qcase.idle_timeout": "seconds without a byte from the guest; 0: none",
    "qcase.reset": "true: the guest may reset its machine, which otherwise ends QEMU",
    "qcase.branch": "false: the case boots from the start, also with [run] branch",
    "qcase.packages": "packages of the guest's distribution, as apk names them",
    "qcase.rootfs": "a name in [guest.<arch>] disks, <guests> or a path; default: what the drive names",
    "qcase.tags": "words to choose cases by, with --tag",
    "qcase.retries": "attempts that follow one that did not pass; what passes then is flaky",
    "qcase.build": "named | all: which subcases of a grouped case must build",
    "qcase.cargo": "build | test: whether a Rust crate's programs are installed, or its tests",
    "qcase.cargo_options": 'options of cargo for all that the case has in Rust: "--features=x", "--package=y"',
    "qcase.cmake": 'options of CMake for all that the case has in C: "-DX=ON", "--preset=small"',
    "qcase.meson": 'options of `meson setup`, likewise: "-Dtests=true"',
    "qcase.configure": 'options of the script `configure`, likewise: "--disable-shared"',
    "qcase.build_system": "cmake | meson | configure | make: which of several that sources in C have",
    "qcase.make": 'words on the command line of make, likewise: "V=1", "USE_X=no", "all", "tests"',
    "qcase.kernel_env": "variables for the command that builds the kernel: a kernel of the case's own",
    "qcase.pipeline": "ktest: the case is its kernel's own tests; default: what its folder has",
    "qcase.kernel": "The kernel of a case of the pipeline ktest.",
    "qcase.kernel.build": "the command that builds it; default: that of [guest.<arch>] kernel",
    "qcase.kernel.output": "the file that it leaves, relative to the workspace",
    "qcase.kernel.where": "host, or the toolchain image in which it is run",
    "qcase.kernel.args": "the words that ${args} stands for",
    "qcase.matrix": "[[qcase.matrix]]: machines for the case, each a case of its own: name, axis, and what differs",
    "qcase.install": 'what of a build in C goes to the guest besides, by folder: { "usr/bin" = ["tests/test-*"] }',
}


@dataclass(frozen=True)
class Key:
    """One key or table. `path` is dotted. `default` is None where there is none, and for a table."""

    path: str
    name: str
    model: type[BaseModel] | None
    default: object

    @property
    def meaning(self) -> str:
        return meaning(self.path)


def meaning(path: str) -> str:
    """Return the meaning of a key, also of those that plug-ins add; empty for an unknown key."""
    table, _, rest = path.partition(".")
    name, _, key = rest.partition(".")
    if table == "toolchain" and name in added_toolchains():
        return MEANING["toolchain.rust.image"] if key else f"The tools of the pipeline `{name}`."
    return MEANING.get(twin(path), "").replace("<guests>", guest_words())


def twin(path: str) -> str:
    """Return the path under which a key is described."""
    for table, described in _TWINS.items():
        if path == table or path.startswith(f"{table}."):
            return described + path[len(table) :]
    return path


def keys(model: type[BaseModel], above: str = "") -> Iterator[Key]:
    """Yield all keys of a model; a table's own before its tables."""
    values = model()
    tables = []
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        path = f"{above}.{name}" if above else name
        inner = _model(field.annotation)
        if inner is not None:
            tables.append(Key(path, name, inner, None))
        else:
            yield Key(path, name, None, getattr(values, attribute))
    for table in tables:
        yield table
        assert table.model is not None
        yield from keys(table.model, table.path)


def json_schema(name: str) -> str:
    """Return the JSON Schema of a kind of file, as text. Raises `UsageError` for an unknown kind."""
    model = _known(name)
    schema = model.model_json_schema(mode="validation")
    definitions = schema.get("$defs", {})
    _describe(schema, "", definitions)
    for definition in definitions.values():
        _tidy(definition)
    _tidy(schema)
    schema["additionalProperties"] = False  # of a case's file an unknown key is a warning, which an editor shows as one
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": TITLES[name], **schema}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def toml(name: str) -> str:
    """Return all keys of a kind of file with their defaults and meanings: a valid file that changes nothing."""
    return "\n".join([f"# {TITLES[name]}", *_toml(_known(name), lambda line: line)]) + "\n"


def commented(name: str, *, leave_out: Callable[[str], bool]) -> list[str]:
    """Return the lines of `toml` with all keys commented out, without those that `leave_out` names.

    Tables are not: a key that somebody uncomments has to stand in its own. Tables of plug-ins are left out: the file is for
    people who have none.
    """
    return list(_toml(MODELS[name], lambda line: line if line.startswith(("#", "[")) else f"# {line}", leave_out))


def _known(name: str) -> type[BaseModel]:
    if name not in MODELS:
        raise UsageError(f"there is no schema {name!r}", hint=f"there are: {', '.join((*MODELS, 'results', 'events'))}")
    return whole_model() if MODELS[name] is WorkspaceConfig else MODELS[name]


# ---- TOML


def _toml(
    model: type[BaseModel], written: Callable[[str], str], leave_out: Callable[[str], bool] = lambda _: False
) -> Iterator[str]:
    tables: list[tuple[str, str, list[Key]]] = [("", "", [])]
    for key in keys(model):
        if key.path != twin(key.path) or leave_out(key.path):
            continue
        if key.model is None:
            tables[-1][2].append(key)
        else:
            tables.append((f"[{key.path}]", key.meaning, []))
    # A table of which every key is left out is still there for those who say what these are.
    bare = {f"[{key.path.rpartition('.')[0]}]" for key in keys(model) if key.model is None and leave_out(key.path)}
    blank = False
    for header, meaning, below in tables:
        if not below and header not in bare:
            continue
        if blank:
            yield ""
        blank = True
        rows = [(header, meaning)] if header else []
        for key in below:
            line = f"# {key.name} =" if key.default is None else f"{key.name} = {literal(key.default)}"
            rows.append((written(line), key.meaning))
        column = min(max(len(line) for line, _ in rows) + 2, _COLUMN)
        for line, said in rows:
            whole = f"{line:<{column}} # {said}" if said else line
            yield from [whole] if len(whole) <= _WIDTH else [f"# {said}:", line]


def literal(value: object) -> str:
    """Format a value as TOML; a pattern as a literal string, which needs no escapes."""
    if isinstance(value, str) and "\\" in value and "'" not in value:
        return f"'{value}'"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_key(key)} = {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    return toml_value(value)


def _model(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a table; None for a key, also for one whose value may be a table."""
    if get_origin(annotation) is Annotated:
        return _model(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType) and len(set(get_args(annotation)) - {type(None)}) > 1:
        return None
    if get_origin(annotation) in (Union, UnionType):
        return next((found for part in get_args(annotation) if (found := _model(part)) is not None), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


# ---- JSON Schema


def _describe(schema: dict[str, Any], above: str, definitions: dict[str, Any]) -> None:
    for name, entry in schema.get("properties", {}).items():
        path = twin(f"{above}.{name}" if above else name)
        reference = entry.get("$ref", "").rpartition("/")[2]
        if reference:
            _describe(definitions[reference], path, definitions)
        if said := meaning(path):
            entry["description"] = said


def _tidy(schema: dict[str, Any]) -> None:
    """Remove what does not help a person who writes TOML: names of classes, and null, which TOML does not have."""
    schema.pop("title", None)
    schema.pop("description", None)
    for name, entry in schema.get("properties", {}).items():
        entry.pop("title", None)
        options = [option for option in entry.get("anyOf", []) if option.get("type") != "null"]
        if len(options) == 1:
            schema["properties"][name] = {**{k: v for k, v in entry.items() if k not in ("anyOf", "default")}, **options[0]}
        elif "$ref" in entry:
            entry.pop("default", None)
