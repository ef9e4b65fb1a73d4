"""Downloads by URL, with retries."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from qcase.errors import InfraError
from qcase.events import Emit, Progress
from qcase.host import file_state
from qcase.host.retry import retry_after_momentary

T = TypeVar("T")
FETCH_ATTEMPTS = 3
CONNECT_TIMEOUT = 60.0  # of silence


class MomentaryError(InfraError):
    """A download error that is probably temporary."""


def fetch_url(url: str, target: Path, emit: Emit) -> None:
    """Download a file by its address, with the proxies that the environment names."""
    import http.client
    import urllib.error
    import urllib.request

    def once() -> None:
        try:
            with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT) as source, target.open("wb") as out:  # noqa: S310 - checked
                shutil.copyfileobj(source, out, 1 << 20)
                length = source.headers.get("Content-Length", "")
                # `read` takes a broken connection for the end of the file.
                if length.isdecimal() and out.tell() < int(length):
                    raise MomentaryError(f"the connection broke off after {out.tell()} of {length} bytes", where=url)
        except urllib.error.HTTPError as error:
            error.close()
            kind = MomentaryError if error.code in (500, 502, 503, 504) else InfraError
            raise kind(f"the server says {error.code} {error.reason}", where=url) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, FileNotFoundError):
                raise InfraError("there is no such file", where=url) from None
            raise MomentaryError(f"cannot be fetched: {error.reason}", where=url, hint="is there a network?") from None
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise MomentaryError(f"the connection broke off: {error or type(error).__name__}", where=url) from None
        except ValueError as error:
            raise InfraError(f"is no address: {error}", where=url) from None

    retry_download(once, emit)


def retry_download(fetch: Callable[[], T], emit: Emit) -> T:
    """Call `fetch`, and again after a `MomentaryError`."""

    def say(attempt: int) -> None:
        emit(Progress(f"the download broke off, trying again ({attempt} of {FETCH_ATTEMPTS})"))

    return retry_after_momentary(
        fetch, lambda error: isinstance(error, MomentaryError), attempts=FETCH_ATTEMPTS, first=1, say=say
    )


def expect(
    path: Path, sha256: str, what: str, hint: str = "the index serves another file under that name; it is not used"
) -> None:
    found = file_state.sha256(path)
    if found != sha256:
        raise InfraError(
            f"has the sha256 {found}, expected {sha256}",
            where=what,
            hint=hint,
        )
