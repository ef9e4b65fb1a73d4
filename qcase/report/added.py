"""Reports of plug-ins, for `--report NAME=FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qcase import plugins
from qcase.errors import UsageError
from qcase.events import Emit
from qcase.report import output_file
from qcase.text import nearest

BUILT_IN = ("json", "events", "junit", "html")  # these have options of their own


def listener(asked: str) -> Emit:
    """Return the listener of a plug-in's report: of what its entry point, a function of the file's path, makes.

    Raises `UsageError` for an unknown report, and for a file that cannot be written.
    """
    name, equals, file = asked.partition("=")
    known = plugins.names(plugins.REPORTS, BUILT_IN)
    if name in BUILT_IN:
        raise UsageError("is a report of qcase itself", where=f"--report {asked}", hint=f"write --{name} {file or 'FILE'}")
    if not equals or not file:
        raise UsageError("is not NAME=FILE", where=f"--report {asked}", hint="write the report's name, = and a file")
    if name not in known:
        hint = nearest(name, known) if known else "no distribution that is installed here has a report"
        raise UsageError(f"there is no report {name!r}", where="--report", hint=hint)
    output_file.check(Path(file), f"--report {name}=")
    make: Any = plugins.load(plugins.REPORTS, name, BUILT_IN, object)
    plugin = plugins.declared(plugins.REPORTS, name, BUILT_IN)
    if not callable(make):
        raise plugin.error(f"{plugin.entry.value} is {type(make).__name__}, and must be a function")
    found = plugin.guarded(make)(Path(file))
    if not callable(found):
        raise plugin.error(f"{plugin.entry.value} returned {type(found).__name__}, and must return a listener, a function")
    return plugin.guarded(found, what=f"the listener of {plugin.entry.value}")
