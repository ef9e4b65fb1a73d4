"""One guest's console: its text, and what holds through all steps of a case.

A case without steps has one judge for its console. A case with steps has one judge for each, over the same console: the text,
the search of patterns in it, the words of panics, the kernel's reports, resets and times go through all of them.
"""

from __future__ import annotations

from typing import Final

from qcase.console.all_readings import AllReadings
from qcase.console.keyboard import Keyboard
from qcase.console.panics import Suspects
from qcase.console.rules import Rules, Ruling
from qcase.console.tail import Tail
from qcase.console.times import Resets, Times
from qcase.console.transcript import Transcript
from qcase.console.trouble import TroubleWatch
from qcase.model import KernelTrouble, Phase, Verdict

_TYPED_LEAST: Final = 2  # a typed line of at most so many characters may occur anywhere by chance


class Console:
    """The console of one guest. `booted`: a prompt has come. `open`: patterns of the whole case search."""

    def __init__(self, rules: Rules, started: float) -> None:
        self.transcript = Transcript((rules.prompt or "").encode(), resets=rules.resets)
        typed = (rules.typed or "", *(rules.group.labels if rules.group else ()), *(step.typed or "" for step in rules.steps))
        self.trouble = TroubleWatch(typed, stamped=rules.time_stamps or None)
        self.search = AllReadings(self.transcript)
        self.suspects = Suspects(rules.prompt)
        self.tail = Tail(self.transcript.written)
        self.resets = Resets(expected=sum(bool(step.expect) for step in rules.steps))
        self.times = Times(started, started)
        self.taken = 0  # end of the written text at the last search for kernel trouble
        self.booted = False
        self.open = not rules.from_prompt or bool(rules.steps and all(step.prompt is None for step in rules.steps))
        self._typed: tuple[bytes, ...] = ()

    def note_typed(self, typed: bytes) -> None:
        """Record lines that are typed now: their whole text is no evidence, in this step nor in a later one."""
        lines = tuple(line.strip() for line in typed.split(b"\n") if len(line.strip()) > _TYPED_LEAST)
        self._typed += lines
        self.suspects.note_typed(lines)
        self.transcript.readings.note_typed(self._typed, new=len(lines))

    def begin_step(self, prompt: str | None, border: int) -> None:
        """Begin a step with the prompt that it waits for. Text before the border is no evidence of it."""
        if prompt is not None:
            self.transcript.readings.use_prompt(prompt.encode())
            self.suspects.add_prompt(prompt)
        self.times.begin_step()
        self.search.arm(border)
        self.search.again()

    def drop_keyboard(self, keyboard: Keyboard) -> None:
        """Retire the keyboard of an earlier step: another command is typed from here on. Its echo stays hidden."""
        keyboard.hand_over()
        if (restored := keyboard.hidden.take_restored()) is not None:
            self.suspects.again(self.transcript.written.start_of_line(restored))


class ConsoleReader:
    """Base of judges: names of the console's parts, and what the console alone tells. `steps`: see `StepsJudge`."""

    steps: None = None

    def __init__(self, rules: Rules, console: Console) -> None:
        self.rules = rules
        self.ruling: Ruling | None = None
        self._console = console
        self._times = console.times
        self._transcript = console.transcript
        self._readings = console.transcript.readings
        self._text = console.transcript.written
        self._trouble = console.trouble
        self._tail = console.tail
        self._search = console.search
        self._suspects = console.suspects
        self._resets = console.resets

    @property
    def started(self) -> float:
        return self._times.started

    @property
    def prompt_at(self) -> float | None:
        """Time at which the prompt came."""
        return self._times.prompt_at

    @property
    def command_at(self) -> float | None:
        """Time at which the first line end was typed."""
        return self._times.command_at

    @property
    def phase(self) -> Phase:
        return Phase.BOOT if self._booting else Phase.COMMAND

    @property
    def _booting(self) -> bool:
        return self.prompt_at is None and not self._console.booted

    def kernel_trouble(self) -> tuple[KernelTrouble, ...]:
        """Return the kernel's reports short of a panic, except those that led to a panic."""
        panicked = self.ruling is not None and self.ruling.verdict is Verdict.PANIC
        return () if self.rules.kernel_trouble == "ignore" else self._trouble.found(panicked=panicked)

    @property
    def more_trouble(self) -> int:
        """Number of further such reports that are not kept (a lower bound)."""
        return 0 if self.rules.kernel_trouble == "ignore" else self._trouble.more

    def tail(self, lines: int) -> tuple[str, ...]:
        """Return the last lines of the console, including an unfinished one."""
        return self._tail.last(lines)

    def reset(self, now: float) -> None:
        """Count a reset of the guest's machine, which starts again."""
        if self._resets.note(now, self._times.last_data):
            self.watch_resets()

    def watch_resets(self) -> None:
        """Rule on resets that are too many."""
        if self.ruling is None and (times := self._resets.too_many):
            self.ruling = Ruling(
                Verdict.PANIC, f"the guest's machine was reset {times} times", self.phase, excerpt=self._tail.last_line()
            )
