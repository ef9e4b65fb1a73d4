"""Commands `known add` and `known list`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcase.arch import DEFAULT
from qcase.cli.app import known_app, targets_of
from qcase.cli.options import ArchOption, CasesArgument, TargetOption, WorkspaceOption, arch_named
from qcase.cli.output import counted, reported
from qcase.errors import UsageError
from qcase.report import inert
from qcase.text import without_controls


@known_app.command("add")
def add_command(
    cases: CasesArgument = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why they fail; needed.")] = "",
    link: Annotated[str, typer.Option("--link", metavar="URL", help="Where to read about it.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="DATE", help="The last day on which it is excused: 2027-01-31.")] = "",
    arch: ArchOption = DEFAULT.value,
    target: TargetOption = "",
    workspace: WorkspaceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be added.")] = False,
) -> None:
    """Add what failed in the last run to known.toml: all of it, or these cases. What stands in the file stays as it is."""
    with reported():
        from datetime import date

        from qcase.suite import known_additions
        from qcase.suite.cases import Workspace

        if not reason.strip():
            raise UsageError("a known failure needs a reason", where="--reason", hint="say why it fails, in one line")
        try:
            day = date.fromisoformat(until) if until else None
        except ValueError:
            raise UsageError(f"{until!r} is no date", where="--until", hint="such as 2027-01-31") from None
        opened = Workspace.open(workspace or Path.cwd())
        known = arch_named(arch)
        (triple,) = targets_of([known], target).values()
        added, left = known_additions.additions(opened, known, triple, cases or [], reason.strip(), link.strip(), day)
        for case in left:
            print(f"{case}: how it ended is nothing that an entry can excuse")
        for one in added:
            print(one.toml() if dry_run else f"{one.case}{f', {one.test}' if one.test else ''}: {', '.join(one.excuses)}")
        if added and not dry_run:
            path = known_additions.write(opened, added)
            print(f"{opened.relative(path)}: {counted(len(added), 'entry').replace('entrys', 'entries')} added")
        elif not added:
            print("nothing to add")


@known_app.command("list")
def list_command(
    workspace: WorkspaceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Show the entries of known.toml: what they excuse, why, and which have expired."""
    with reported():
        import json

        from qcase.suite.cases import Workspace
        from qcase.suite.known_failures import KnownFailures

        known = KnownFailures.load(Workspace.open(workspace or Path.cwd()))
        rows = [
            {
                "entry": one.place,
                "case": one.case,
                "test": one.test,
                "arches": [arch.value for arch in one.arches],
                "excuses": sorted(one.excuses),
                "reason": one.reason,
                "link": one.link,
                "until": one.until.isoformat() if one.until else "",
                "expired": one.expired(known.today),
            }
            for one in known.entries
        ]
        if as_json:
            print(inert.json(json.dumps({"format": 1, "known": rows}, indent=1)))
            return
        for one, row in zip(known.entries, rows, strict=True):
            what = [one.case, one.test, ", ".join(one.arches), ", ".join(sorted(one.excuses))]
            print(f"{one.place}  {'  '.join(without_controls(part) for part in what if part)}")
            until = f", {'expired' if row['expired'] else 'until'} {one.until}" if one.until else ""
            print(without_controls(f"    {one.reason}{f' ({one.link})' if one.link else ''}{until}"))
        if not rows:
            print("no known failures: `qcase known add` writes what failed into known.toml")
