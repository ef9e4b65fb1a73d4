"""The log of an image build, and its heartbeat."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from qcase.events import Emit, Event, Progress

HEARTBEAT = 15.0  # seconds of silence after which a build emits a heartbeat
SAID = 15  # lines of a failed build that its error shows
# The engine's builder shows a step's standard error in red, even in the middle of lines.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class BuildLog:
    """Output of a build: all of it to a file, its steps to the progress display, its last lines kept for an error."""

    def __init__(self, path: Path, heartbeat: Heartbeat) -> None:
        self.path = path
        self.step = ""
        self.error = ""
        self.last: deque[str] = deque(maxlen=SAID)
        self._heartbeat = heartbeat
        self._partial = ""

    def __enter__(self) -> BuildLog:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w", encoding="utf-8", errors="replace")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def take(self, message: Mapping[str, object]) -> None:
        """Handle one message of the engine's builder: `{"stream": text}` or `{"error": text}`. Other messages are ignored."""
        if "error" in message:
            self.error = str(message["error"]).strip()
            self._file.write(self.error + "\n")
        *lines, self._partial = (self._partial + str(message.get("stream", ""))).split("\n")
        for line in (_COLOUR.sub("", line) for line in lines):
            self._file.write(line + "\n")
            if re.match(r"Step \d+/\d+ : ", line):
                self.step = _shortened(line.replace("Step", "step", 1).replace(" : ", ": ", 1), 100)
                self.last.clear()
                self._heartbeat.say(self.step)
            elif line.strip() and not line.startswith((" ---> ", "Removing intermediate container ")):
                self.last.append(line.rstrip())
                self._heartbeat.hear(line)
        self._file.flush()


class Heartbeat:
    """Progress reporter of a long task. Emits its current step, and a heartbeat after `HEARTBEAT` seconds of silence."""

    def __init__(self, what: str, emit: Emit | None, interval: float = HEARTBEAT) -> None:
        self._what = what
        self._emit = emit
        self._interval = interval
        self._began = time.monotonic()
        self._last_line = ""
        self._said = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat of {what}", daemon=True)

    def __enter__(self) -> Heartbeat:
        if self._emit is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped = True
        self._said.set()
        if self._thread.is_alive():
            self._thread.join()

    def say(self, text: str) -> None:
        self._last_line = ""
        say(self._emit, f"{self._what}: {text}")
        self._said.set()

    def hear(self, line: str) -> None:
        """Record the last line of the task's output; the next heartbeat shows it."""
        self._last_line = line

    def _beat(self) -> None:
        while not self._stopped:
            if self._said.wait(self._interval):
                self._said.clear()
            else:
                last = f", at: {_shortened(self._last_line.strip(), 80)}" if self._last_line else ""
                say(self._emit, f"{self._what}: {time.monotonic() - self._began:.0f} s{last}")


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def say(emit: Emit | None, message: str) -> None:
    if emit is not None:
        event: Event = Progress(message)
        emit(event)
