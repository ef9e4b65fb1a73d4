"""A case's prompt on its console."""

from __future__ import annotations

import re
from typing import Final

from qcase.console.all_readings import PROMPT_LIKE
from qcase.console.transcript import Transcript

_REST: Final = re.compile(rb"[^\s]*[ \t]*")
_FOLDER: Final = 64  # maximum bytes of a prompt behind the part that the case names: a folder


class Prompt:
    """Finds the prompt from a position on. `end`: where it ended when it came first."""

    def __init__(self, prompt: str | None, transcript: Transcript, since: int = 0) -> None:
        self.end = 0
        self._since = since
        self._prompt = (prompt or "").encode()
        self._transcript = transcript
        self._sought = 0  # end of the written text at the last search

    def find(self) -> bool:
        """Tell whether the prompt stands in the new text."""
        text = self._transcript.written
        at = text.find(self._prompt, max(self._sought - len(self._prompt), self._since, text.base))
        self._sought = text.end
        if at >= 0:
            self.end = at + len(self._prompt)
        return at >= 0

    def end_row_before(self) -> None:
        """End the text before the prompt on its row, if the prompt is back behind that text and waits."""
        readings = self._transcript.readings
        row = self._transcript.open_row()[0]
        if not row.strip():  # else the line goes on behind the prompt
            readings.end_torn_at_prompt()
        at = row.rfind(self._prompt) if self._prompt else -1
        if at <= 0 or not self._transcript.at_row_end:
            return
        rest = _REST.fullmatch(row, at + len(self._prompt))
        if rest and len(rest[0]) < _FOLDER and PROMPT_LIKE.search(row, at):
            self._transcript.split(at)
            readings.update()
