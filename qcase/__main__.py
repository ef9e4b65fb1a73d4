"""`python -m qcase`: the program, where its script is not on the search path."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python looks for modules in the current folder first, which is a workspace: its files are no libraries and no plug-ins.
    if not sys.flags.safe_path and Path(sys.path[0]) != Path(__file__).parents[1]:
        del sys.path[0]
    from qcase.cli.main import program

    program()
