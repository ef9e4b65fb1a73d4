"""Lines of the terminal for cases that a run leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from qcase.model import NotRun
from qcase.text import without_controls


def lines(not_run: Sequence[NotRun], *, everything: bool) -> Iterator[str]:
    """Yield one line with their number by reason; with `everything` another one for each case."""
    if not not_run:
        return
    counts = Counter(one.why for one in not_run)
    count = f"{len(not_run)} case{'s' if len(not_run) > 1 else ''}"
    yield f"not run: {count}: {', '.join(f'{number} {without_controls(why)}' for why, number in sorted(counts.items()))}"
    for one in not_run if everything else ():
        yield f"not run: {without_controls(one.case)}, {without_controls(one.why)}"
