"""`python -m qcase`: the program, where its script is not on the search path."""

from __future__ import annotations

from qcase.cli.main import program

if __name__ == "__main__":
    program()
