"""Follows an echo that comes late, or once more, through the text.

An echo that comes after its line end, because the guest was busy, and the second one that a line editor paints of lines that
were typed ahead: these begin at the start of a line or behind a prompt and hold the whole line. They are followed byte by byte,
and hidden already while they may still become one.
"""

from __future__ import annotations

import re
from typing import Final

from qcase.console.echo_text import AFTER, BETWEEN, LATEST, Trace, TypedLine, anywhere
from qcase.console.hidden import TRACES, Hidden
from qcase.console.joined import KERNEL_LINE
from qcase.console.text import Text
from qcase.console.typed_command import TypedCommand

_SPACE: Final = 1 << 15  # bytes between an echo and another one, which is no repaint then
_BREAKS: Final = 3  # line ends that a terminal may make of one break: busybox writes CR, CR LF
_KERNEL_WHOLE: Final = re.compile(KERNEL_LINE.pattern + rb"\n")
_MAYBE_BETWEEN: Final = re.compile(rb"(?: |" + KERNEL_LINE.pattern + rb"|(?:<\d?>?)?\[[ \d.]*)\Z")
_MAYBE_AFTER: Final = re.compile(rb" ?(?:(?:<\d?>?)?\[[ \d.]*)?\Z")
# Where an echo may begin: at the start of a line, and behind what looks like a prompt.
_PLACE: Final = rb"(?:^|[#$>%])[ >]*"


class Traces:
    """The places at which an echo may stand."""

    def __init__(self, command: TypedCommand, hidden: Hidden, text: Text) -> None:
        self._command = command
        self._hidden = hidden
        self._text = text
        self._seen = text.end
        self._printed = -1, -1  # an end of the first line's echo, and a place before which something was printed since
        self._watch(text.end, [(line, line.chars) for line in command.lines[:1]], repaint=False)

    @property
    def seen(self) -> int:
        """The end of the text that was looked at."""
        return self._seen

    def watch_late(self, line: TypedLine) -> None:
        """Watch the end of the text for the rest of a line's echo."""
        self._watch(self._text.end, [(line, line.rest)], repaint=False, late=True)

    def find(self) -> None:
        """Look for echo in the new text, and follow what has begun."""
        self._find_places()
        self._find_whole()
        self._seen = self._text.end
        undone: list[Trace] = []
        self._hidden.traces = {key: trace for key, trace in self._hidden.traces.items() if self._follow(trace, undone)}
        for key, trace in list(self._hidden.traces.items()):
            if trace.late and not trace.line.missing:
                undone.append(self._hidden.traces.pop(key))
        if len(self._hidden.traces) > TRACES:
            keys = sorted(self._hidden.traces, key=lambda key: self._hidden.traces[key].matched)
            undone += [self._hidden.traces.pop(key) for key in keys[:-TRACES]]
        self._hidden.show(undone)

    def _find_places(self) -> None:
        """Watch the places in the new text at which an echo may begin."""
        text, prompt, first_line = self._text, self._command.prompt, self._command.lines[0]
        every = [(line, line.chars) for line in self._command.lines]
        at = text.find(prompt, max(self._seen - len(prompt) + 1, text.base)) if prompt else -1
        while at >= 0:
            self._watch(at + len(prompt), every[self._has_run(at) :], repaint=False)
            at = text.find(prompt, at + 1)
        # The first line is typed at the case's prompt, and can come again only there.
        prompted = prompt and text.find(prompt, text.start_of_line(self._seen)) >= 0
        late = [(line, line.rest) for line in self._command.lines if line.missing and text.end < line.ended_at + LATEST]
        again = [
            (line, line.chars)
            for line in self._command.lines
            if line.at and line.repaints and (line is not first_line or (prompted and not self._has_run(text.line_start)))
        ]
        if not late and not again:
            return
        first = {chars[0].pattern for _, chars in late + again if chars}
        begins = rb"(?=" + rb"|".join(sorted(first)) + rb"|\Z)"
        # A place at the end of the text is watched before anything stands there, so none begins in what was seen.
        for place in re.compile(rb"(?m)" + _PLACE + begins).finditer(text.raw, self._seen - text.base):
            start = text.base + place.end()
            prompted = place.end() > place.start()
            self._watch(start, late, repaint=False, late=True, prompted=prompted)
            if prompted:
                self._watch(start, again, repaint=True)

    def _has_run(self, at: int) -> bool:
        """Tell whether something was printed between the first line, which came back, and a prompt: no repaint follows then."""
        line = self._command.lines[0]
        if not line.ended or line.missing or line.found_to < 0:
            return False
        if at - line.found_to > _SPACE or (self._printed[0] == line.found_to and self._printed[1] <= at):
            return True
        between = KERNEL_LINE.sub(b"", self._text.slice(line.found_to, at)).replace(self._command.prompt, b"")
        if not between.strip(b"\0 \r\n#$>"):
            return False
        self._printed = line.found_to, at
        return True

    def _find_whole(self) -> None:
        """Look for missing echo as a whole: a trace, which never goes back, can take a break's blank for one that was typed.

        The late echo of a line that was typed while something ran stands in the middle of that's output.
        """
        for line in self._command.lines:
            if not line.missing or not line.ended or self._text.end >= line.ended_at + LATEST:
                continue
            place = rb"" if self._command.echoes and line is not self._command.lines[0] else _PLACE
            whole = re.compile(rb"(?m)" + place + rb"(" + anywhere(line.rest).pattern + rb")(?:" + AFTER.pattern + rb"|\Z)")
            start = max(self._command.ran, self._text.base, self._seen - 4 * len(line.text) - 256)
            start = max(self._text.start_of_line(start), self._command.began)
            if found := whole.search(self._text.raw, max(start - self._text.base, 0)):
                self._hidden.hide_surely(self._text.base + found.start(1), self._text.base + found.end(1))
                if found.end(1) < len(self._text.raw):
                    line.missing.clear()

    def _watch(
        self,
        start: int,
        wanted: list[tuple[TypedLine, list[re.Pattern[bytes]]]],
        *,
        repaint: bool,
        late: bool = False,
        prompted: bool = True,
    ) -> None:
        ahead = self._text.slice(start, start + 8)
        for line, chars in wanted:
            if chars and (len(ahead) < 8 or chars[0].match(ahead) or ahead[0] in b" >"):
                self._hidden.traces.setdefault((id(line), start), Trace(line, chars, repaint, late, prompted, at=start))

    def _follow(self, trace: Trace, undone: list[Trace]) -> bool:
        """Follow a trace through the new text. True if more of it may come."""
        text = self._text
        if trace.at < text.base:
            return False
        began = trace.at
        more = False
        while trace.matched < len(trace.chars) and not more:
            char = trace.chars[trace.matched]
            end = text.match(char, trace.at)
            # A character that may be lost is looked for behind a break first.
            between = None if end is not None and end > trace.at else self._pass_over(trace)
            if trace.at >= text.end or (end == text.end and len(char.pattern) > 2):
                more = True  # also of a character: an echo of `^A` may be there as far as `^`
            elif between is not None:
                self._hide(trace, began, trace.at)
                trace.breaks += text.match(_KERNEL_WHOLE, trace.at) is None
                trace.at = began = between
            elif trace.breaks and end in (None, trace.at) and text.raw[trace.at - text.base] in b" >":
                trace.at += 1  # a shell's `> `; or the blank of a break was taken for one that was typed
            elif end is not None:
                trace.begun = trace.begun or end > trace.at
                trace.breaks = trace.breaks if end == trace.at else 0
                trace.at = end
                trace.matched += 1
            elif not trace.begun and text.raw[trace.at - text.base] in b" >":
                trace.at = began = trace.at + 1
            elif trace.begun and text.match(_MAYBE_BETWEEN, trace.at) is not None:
                more = True
            else:
                # A line editor may paint a part of a line. It stays hidden if all of the text's line fits.
                if not (trace.prompted and trace.breaks):
                    undone.append(trace)
                else:
                    self._hidden.parts.update(trace.hidden)
                return False
        self._hide(trace, began, trace.at)
        if more:
            return True
        if trace.line.ended and text.match(AFTER, trace.at) is None:
            if text.match(_MAYBE_AFTER, trace.at) is not None:
                return True
            undone.append(trace)
            return False
        if trace.at > trace.line.found_to:  # not from two places at once
            if trace.repaint and trace.line.repaints == 0:
                undone.append(trace)
                return False
            trace.line.found_to = trace.at
            if trace.repaint:
                trace.line.repaints -= 1
            if trace.line.ended:
                trace.line.missing.clear()
        self._hidden.surely.extend(trace.hidden)
        return False

    def _pass_over(self, trace: Trace) -> int | None:
        """Return the end of a line end or a kernel's line in the middle of an echo."""
        if not trace.begun or trace.at >= self._text.end:
            return None
        return self._text.match(_KERNEL_WHOLE if trace.breaks == _BREAKS else BETWEEN, trace.at)

    def _hide(self, trace: Trace, start: int, end: int) -> None:
        if end > start:
            self._text.blank(start, end)
            trace.hidden.append((start, end))
