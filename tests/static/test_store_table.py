"""The page about the store says of each accident which test shows what happens: those tests are there."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def test_the_tests_that_the_page_names_are_there() -> None:
    rows = [line for line in (ROOT / "docs" / "store.md").read_text(encoding="utf-8").splitlines() if line.count(" | ") == 2][1:]
    assert len(rows) > 20
    for row in rows:
        if set(row) <= set("|- "):
            continue
        file = None
        for name in re.findall(r"`([\w/.:]+)`", row.split(" | ")[2]):
            path, _, test = name.rpartition("::") if "::" in name else (name, "", "") if name.endswith(".py") else ("", "", name)
            file = (ROOT / path if "/" in path else next((ROOT / "tests").rglob(path))) if path else file
            assert file is not None, row
            assert file.is_file(), row
            assert not test or f"def {test}(" in file.read_text(encoding="utf-8"), (test, row)
        assert file is not None, f"no test is named: {row}"
