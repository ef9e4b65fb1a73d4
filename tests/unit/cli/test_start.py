"""The start of the program: it makes only what the command line needs."""

from __future__ import annotations

import pytest

from qcase.cli import main


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_list_of_commands_is_that_of_the_whole_program(width: int) -> None:
    """It is made of names alone, since typer takes a millisecond for the options of each command."""
    listed, whole = (
        one.get_help(one.make_context("qcase", [], resilient_parsing=True, terminal_width=width))
        for one in (main.command(names=True), main.command())
    )
    assert listed == whole
    assert "known" in listed
    assert not main.command(names=True).commands["run"].params
