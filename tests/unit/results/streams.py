"""What the tests of all readers share."""

from __future__ import annotations

from qcase.results.dialects import reader_of
from qcase.results.reader import Reader


def read(dialect: str, text: str) -> Reader:
    """Read a stream, one line a second."""
    reader = reader_of(dialect)
    for second, line in enumerate(text.splitlines()):
        reader.take(line, float(second))
    return reader


def statuses(reader: Reader) -> list[str]:
    """Each test as `<status> <name>`, in the order of the console."""
    return [f"{one.status} {one.name}" for one in (*reader.listed(), *reader.open_tests())]


def faults(reader: Reader) -> list[str]:
    return [fault.what for fault in reader.faults()]
