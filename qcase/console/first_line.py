"""Hides what may be the echo of a command's first line while it is typed.

Until the first line end is out, a part of a line whose characters are a subsequence of what was typed so far may be echo. A line
of which nothing was typed is output. What came back elsewhere is shown again.
"""

from __future__ import annotations

from typing import Final

from qcase.console.echo_text import CHUNK, common_start, is_subsequence, typed_runs, with_carets
from qcase.console.hidden import Hidden
from qcase.console.joined import KERNEL_LINE
from qcase.console.text import Text
from qcase.console.typed_command import PROMPT_END, TypedCommand

_RUN: Final = 4  # typed characters in a row that are no chance


class FirstLine:
    """The text since the first key, as far as the line on which the first line's echo stands."""

    def __init__(self, command: TypedCommand, hidden: Hidden, text: Text) -> None:
        self._command = command
        self._hidden = hidden
        self._text = text
        self._most = 0  # chunks of the first line that were typed so far

    def hide_typing(self) -> None:
        """Hide what may be echo of the text that came since the first key.

        That is each part of a line whose characters are a subsequence of what was typed. A part that holds something else is
        output, but for what goes on with the echo at its start or its end.
        """
        text = self._text
        start = max(self._command.began, self._command.again_from, text.start_of_line(self._command.ran), text.base)
        limit = text.end
        if self._command.line_end_typed:  # the line that is open then, and no other
            ended = self._command.echo_ends()
            limit = text.end if ended < 0 else ended
        else:
            self._command.ran = text.end
        self._most = max(self._most, self._command.lines[0].at)
        typed = with_carets(b"".join(self._command.lines[0].typed[: self._most]))
        while start < limit:
            end = text.find(b"\n", start)
            end = limit if end < 0 else min(end, limit)
            self._hide_part(start, end, typed)
            start = end + 1
        for stretch in self._hidden.outputs:
            if stretch[1] > text.base:
                self._hidden.show_output(*stretch)

    def _hide_part(self, start: int, end: int, typed: bytes) -> None:
        text = self._text
        line = text.slice(start, end)
        kernels = KERNEL_LINE.search(line) if self._command.kernels else None
        if kernels is not None:
            line = line[: kernels.start()]
        if self._command.prompt and (at := line.rfind(self._command.prompt)) >= 0:
            skip = at + len(self._command.prompt)
            rest = PROMPT_END.match(line, skip)
            start += rest.end() if rest else skip
            line = line[rest.end() if rest else skip :]
        end = start + len(line)
        # Where nothing has come back so far, what stands behind the prompt may as well be a command's output.
        late = self._command.line_end_typed and not self._command.sure and start >= self._command.ran
        self._hidden.parts.pop(start, None)
        if not late:
            self._hidden.show_again(start, end)
            text.soft.pop(start, None)
        if late and line[:_RUN] != typed[: min(_RUN, len(line))]:
            if len(line) >= CHUNK // 2 and is_subsequence(line, typed):
                text.soften(start, end)
            return
        capitals = typed.upper()
        if is_subsequence(line, typed):
            text.blank(start, end)
            self._hidden.parts[start] = end
            self._hidden.whole[start] = end
        elif late:
            return
        elif capitals != typed and len(line) > 1 and capitals.startswith(line):
            text.blank(start, end)
        elif len(line) >= _RUN and line.lower() in typed.lower():
            text.soften(start, end)  # an echo that was altered
        else:
            self._hide_ends(start, line, typed)

    def _hide_ends(self, start: int, line: bytes, typed: bytes) -> None:
        """Hide the echo at the start of a line with something else on it, and what of the same chunk stands at its end."""
        for low, high in self._command.sure:
            self._text.blank(max(low, start), max(start, min(high, start + len(line))))
        before = sum(high <= start for _, high in self._command.sure)
        came = sum(len(chunk) for chunk in self._command.lines[0].typed[:before])
        first = common_start(line, typed[came:])
        if first > 1 or (first and not came):
            self._hide_mixed(start, start + first)
            chunk = typed[came + first : came + CHUNK]
            last = next((n for n in range(len(chunk), 0, -1) if line[first:].endswith(chunk[:n])), 0)
            if last:
                self._hide_mixed(start + len(line) - last, start + len(line))
        for low, high in typed_runs(line, typed, max(_RUN, len(line) // 2)):
            self._text.soften(start + low, start + high)
            self._hidden.soft_runs.append(start + low)

    def _hide_mixed(self, start: int, end: int) -> None:
        self._text.blank(start, end)
        self._hidden.mixed.append((start, end))

    def show_mixed(self) -> None:
        """Show what only looked like a part of what was typed: all of that has come back elsewhere, or nothing has."""
        if self._command.lines[0].missing and self._command.sure:
            return
        if not self._command.lines[0].missing:
            self._text.harden()
            if self._command.may_repeat and len(self._command.sure) == len(self._command.lines[0].chunks):
                self._show_rest()
        elif 2 * sum(high - low for low, high in self._hidden.whole.items()) < len(self._command.lines[0].text):
            # So little of what was typed is no echo of it; but no evidence either.
            for low, high in self._hidden.whole.items():
                self._text.soften(low, high)
                self._hidden.mixed.append((low, high))
                self._hidden.parts.pop(low, None)
        self._hidden.whole.clear()
        for low in self._hidden.soft_runs:
            self._text.harden(low)
        self._hidden.soft_runs.clear()
        shown = [(low, high) for low, high in self._hidden.mixed if all(high <= a or b <= low for a, b in self._command.sure)]
        self._hidden.mixed.clear()
        for low, high in shown:
            self._text.restore(low, high)
            self._hidden.note_restored(low)

    def _show_rest(self) -> None:
        """Show what only could be echo, but for what is painted behind a prompt: each chunk came back where it belongs."""
        for low, high in self._hidden.whole.items():
            prompted = self._command.prompt and self._command.prompt in self._text.slice(self._text.start_of_line(low), low)
            if not prompted and all(high <= a or b <= low for a, b in self._command.sure):
                self._text.soften(low, high)
                self._hidden.mixed.append((low, high))
                self._hidden.parts.pop(low, None)
