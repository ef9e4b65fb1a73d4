"""Lines of the terminal for the build of a kernel.

kernel       one                     built, 12.3 s
kernel       bad                     not built, 4.02 s
             its build ended with status 1
             > error[E0425]: cannot find value `x` in this scope (src/main.rs:3:5)
             all of it: target/qcase/logs/x86_64/bad/kernel.log
"""

from __future__ import annotations

from collections.abc import Iterator

from qcase.model import KernelBuildResult
from qcase.text import seconds, without_controls


def head(build: KernelBuildResult, word: int, name: int) -> tuple[tuple[str, str], ...]:
    """Return the parts of the first line, each with its style. `word` and `name`: columns of these."""
    how = f"{'not built' if build.error else 'built'}, {seconds(build.seconds)}"
    return (f"{'kernel':<{word}}", "bold red" if build.error else "green"), (f" {build.label:<{name}}", ""), (f"  {how}", "dim")


def rest(build: KernelBuildResult, *, everything: bool) -> Iterator[tuple[str, str]]:
    """Yield the lines below it, each with its style: of a kernel that was not built, once for all its cases.

    `everything`: also the last lines of the log.
    """
    if not build.error:
        return
    yield without_controls(build.error), ""
    if build.first_error:
        yield f"> {without_controls(build.first_error)}", "red"
    for line in build.details.splitlines() if everything or not build.first_error else ():
        yield f"| {without_controls(line)}", "dim"
    for line in build.hint.splitlines() if not build.log else ():
        yield f"hint: {without_controls(line)}", ""
    if build.log:
        yield f"all of it: {build.log}", "dim"
