"""Cases of the suite that a run without names does not run, each with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from qcase.model import NotRun
from qcase.suite.cases import BrokenCase, Case, Discovery


def not_run(discoveries: Sequence[Discovery], cases: Sequence[Case | BrokenCase]) -> tuple[NotRun, ...]:
    """Return the cases of these groups that none of the architectures of a run includes. `cases`: those that run."""
    running = {case.display_name for case in cases}
    found: dict[str, NotRun] = {}
    for discovery in discoveries:
        for other in discovery.others:
            if discovery.arch in other.arches:
                why = f"without a build-{discovery.target}.toml"
            else:
                why = f"for {', '.join(other.arches)} alone" if other.arches else "for no architecture"
            found.setdefault(other.display_name, NotRun(other.display_name, other.arches, why))
        for name in sorted(discovery.ignored):
            found.setdefault(name, NotRun(name, (discovery.arch,), "in .ignore"))
    return tuple(found[name] for name in sorted(found) if name not in running)
