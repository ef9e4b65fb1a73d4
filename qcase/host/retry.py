"""Retries after faults that pass by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from qcase.host import process

if TYPE_CHECKING:
    import tenacity

T = TypeVar("T")


def retry_after_momentary(
    call: Callable[[], T],
    is_momentary: Callable[[BaseException], bool],
    *,
    attempts: int,
    first: float,
    longest: float = 10.0,
    spread: bool = False,
    pause: Callable[[float], None] = process.pause,
    say: Callable[[int], None] | None = None,
) -> T:
    """Call `call`, which must be safe to repeat, up to `attempts` times: again after each fault that is momentary.

    The pause doubles from `first` to `longest` seconds, `spread`: at random up to that. It ends with the run, unless another
    `pause` is given. `say` is called with the number of each further attempt. The last fault is raised.
    """
    import tenacity

    def announce(state: tenacity.RetryCallState) -> None:
        if say is not None:
            say(state.attempt_number + 1)

    waiting = tenacity.wait_random_exponential if spread else tenacity.wait_exponential
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=waiting(multiplier=first, max=longest),
        retry=tenacity.retry_if_exception(is_momentary),
        before_sleep=announce,
        sleep=pause,
        reraise=True,
    )(call)
