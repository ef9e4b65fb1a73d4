"""The commands; the one place that prints an error and picks the exit code.

Exit codes of `qcase run`: 0 all passed; 1 some case did not; 2 usage or configuration; 3 infrastructure; 130 interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcase.arch import DEFAULT, Arch
from qcase.arch import names as arch_names
from qcase.cli import output
from qcase.cli.options import image_lock_of, offer_arches
from qcase.cli.output import reported
from qcase.errors import UsageError
from qcase.kinds import labelled

if TYPE_CHECKING:
    from qcase.suite.cases import BrokenCase, Case
    from qcase.toolchains.records import Image


# pydantic looks through all installed distributions for plugins of its own, which takes 20 ms. There are none for us.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


COMPLETE = "_QCASE_COMPLETE"
HELP = ["-h", "--help"]

app = typer.Typer(
    name="qcase",
    help="Run the test cases of an operating system in QEMU, hermetically.",
    epilog="\b\nExamples:\n  qcase init\n  qcase doctor\n  qcase run\n  qcase run --help",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": HELP},
)
cache_app = typer.Typer(name="cache", help="List, check and collect what is stored.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache_app)
known_app = typer.Typer(name="known", help="Record and list known failures.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(known_app)
images_app = typer.Typer(name="images", help="Build, pin and move toolchain images.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(images_app)


ArchesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--arch",
        "-a",
        metavar="ARCH",
        autocompletion=offer_arches,
        help=f"{arch_names()}; may be repeated. Default: {DEFAULT}.",
    ),
]
TrustOption = Annotated[
    str,
    typer.Option(
        "--trust",
        metavar="TRUST",
        help="Trust in the workspace: suite, or sandboxed for a stranger's; default: $QCASE_TRUST, else [run] trust.",
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and the commit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    output.debugging = debug
    if version:
        with reported():
            from qcase.cli.version import describe

            print(describe())
        raise typer.Exit


def as_pinned(found: Sequence[Image]) -> None:
    """Show toolchain images that came from elsewhere, and how they differ from what is pinned."""
    from qcase.config import image_lock
    from qcase.toolchains import recipes

    lock = image_lock_of(None)
    for image in found:
        wanted = lock.pins.get(image.name)
        lines = image_lock.differences(wanted, recipes.recipe_digest(image.name), image.packages) if wanted is not None else []
        state = "not pinned" if wanted is None else "not as pinned" if lines else "as pinned"
        print(f"{image.name}: {image.id}, identity {image.identity}, {len(image.packages)} packages, {state}")
        for line in lines:
            print(f"  {line}")


BuiltArgument = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="The images; default: all that are built.")]


def strict_parser(make: Callable[[Any], Any], context: Any) -> Any:
    """Return a command's parser that refuses a repeated option of one value: the first value would silently not count."""
    parser = make(context)
    parse = parser.parse_args

    def parse_args(args: list[str]) -> Any:
        parsed = parse(args)
        seen = set()
        for parameter in parsed[2]:
            if parameter.name in seen:
                context.fail(f"Option '{parameter.opts[0]}' is given twice, and takes one value.")
            if parameter.param_type_name == "option" and not (parameter.multiple or parameter.count or parameter.is_flag):
                seen.add(parameter.name)
        return parsed

    parser.parse_args = parse_args
    return parser


@dataclass(frozen=True)
class Chosen:
    """The cases of an architecture. `variant`: as `run_cases.Batch` has it."""

    arch: Arch
    variant: str
    cases: Sequence[Case | BrokenCase]

    def label(self, name: str) -> str:
        return labelled(name, self.variant)


def targets_of(arches: Sequence[Arch], target: str) -> dict[Arch, str]:
    """Return architectures, each with its target. Raises `UsageError` if several share a given target."""
    if target and len(arches) > 1:
        raise UsageError("a target is that of one architecture", where="--target", hint="leave it out, or name one --arch")
    return {arch: target or arch.default_target for arch in arches}


def exclude(one: str, is_given: object, other: str, is_given_too: object) -> None:
    """Refuse two options of which one would silently not count."""
    if is_given and is_given_too:
        raise UsageError(f"{one} and {other} are not for the same run", hint="leave out one of them")
