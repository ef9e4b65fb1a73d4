"""File of a console's raw bytes."""

from __future__ import annotations

from typing import IO

CONSOLE_LIMIT = 256 << 20  # bytes kept of a console, beside its end
_END_KEPT = 1 << 20


class ConsoleLog:
    """File of the console's raw bytes. Its size is limited: an endless console must not fill the disk."""

    def __init__(self, file: IO[bytes], limit: int = CONSOLE_LIMIT) -> None:
        self._file = file
        self._left = limit
        self._end = bytearray()
        self.others: dict[str, ConsoleLog] = {}  # of further consoles
        self.cut = 0  # bytes left out

    def write(self, data: bytes) -> None:
        if self._left > 0:
            self._file.write(data[: self._left])
        rest = data[max(self._left, 0) :]
        self._left -= len(data)
        if rest:
            self._end += rest
            if len(self._end) > 2 * _END_KEPT:
                self.cut += len(self._end) - _END_KEPT
                del self._end[:-_END_KEPT]

    def close(self) -> None:
        """Write the end of the console, preceded by a note if bytes were left out."""
        if self.cut:
            self._file.write(f"\n[qcase: {self.cut} bytes are left out here]\n".encode())
        self._file.write(self._end)
        self._end.clear()
        for other in self.others.values():
            other.close()
