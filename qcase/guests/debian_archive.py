"""Debian's package archives: the mirrors that this machine uses, and snapshots of the archive at a point in time.

    <mirror>/dists/<suite>/Release             QCASE_DEBIAN_MIRROR, else as the host's apt has it
    <base>/debian/<time>/dists/<suite>/…       a snapshot, and <base>/debian-security/<time>/ likewise; <base> is
                                               QCASE_DEBIAN_SNAPSHOT, else Debian's own; <time> is YYYYMMDDTHHMMSSZ

A snapshot's Release files have expired, so apt is told to ignore their age. Their signatures are checked as usual.
"""

from __future__ import annotations

import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, timedelta
from functools import partial
from pathlib import Path

from qcase.config import image_lock
from qcase.errors import UsageError

APT = Path("/etc/apt")
SNAPSHOTS = "http://snapshot.debian.org/archive"  # without TLS, like every mirror: the signature protects the content
SNAPSHOT_VARIABLE = "QCASE_DEBIAN_SNAPSHOT"
MIRROR_VARIABLE = "QCASE_DEBIAN_MIRROR"
PATIENCE = 5.0  # seconds for the answer of a snapshot
_DATE_PATIENCE = 10.0
# Snapshots have an update of the archive within an hour; the next update comes after six.
_TAKEN_IN = timedelta(hours=3)
_LARGEST_RELEASE = 4 << 20  # bytes


@dataclass(frozen=True)
class Source:
    """A line of apt's sources: one package archive, one suite. `expired`: its Release files are too old, on purpose."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""
    expired: bool = False


@dataclass(frozen=True)
class Mirrors:
    """Mirrors of Debian. `None`: unknown, so mmdebstrap uses its own default."""

    main: Source | None = None
    security: Source | None = None


# Suites of Debian's own archive. Other archives use the same names, so the address is checked too.
_DEBIAN_SUITES = re.compile(
    r"(buster|bullseye|bookworm|trixie|forky|duke|sid|oldoldstable|oldstable|stable|testing|unstable)(?P<part>-updates|-security|/updates)?"
)


def host_mirrors(apt: Path, environ: Mapping[str, str]) -> Mirrors:
    """Return the Debian mirrors of the host's apt. `QCASE_DEBIAN_MIRROR` (main, blank, security, if known) has priority."""
    if override := environ.get(MIRROR_VARIABLE, "").split():
        main, *rest = (Source(uri.rstrip("/"), "", ("main",)) for uri in override)
        return Mirrors(main, rest[0] if rest else None)
    main_sources, security = [], []
    updates = set()
    for source in _sources(apt):
        match = _DEBIAN_SUITES.fullmatch(source.suite)
        if match is None or "main" not in source.components or urllib.parse.urlsplit(source.uri).scheme not in ("http", "https"):
            continue
        if match["part"] in ("-security", "/updates"):
            security.append(source)
        elif match["part"] == "-updates":
            updates.add(source.uri)
        else:
            main_sources.append(source)

    def is_debian(source: Source) -> bool:
        last = urllib.parse.urlsplit(source.uri).path.rstrip("/").rpartition("/")[2]
        return "debian" in last or "debian-archive" in source.signed_by or source.uri in updates

    return Mirrors(next(filter(is_debian, main_sources), None), next(iter(security), None))


def _sources(apt: Path) -> Iterator[Source]:
    """Yield all package archives of apt's configuration, in its order. An unreadable file is skipped."""
    for path in (apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".sources":
            yield from parse_deb822(text)
        elif path.suffix == ".list":
            yield from parse_one_line(text)


def parse_one_line(text: str) -> Iterator[Source]:
    """Parse apt's one-line style: `deb [option=value …] uri suite component…`."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>[^#]*)", line)
        if match is None:
            continue
        options = dict(option.split("=", 1) for option in (match["options"] or "").split() if "=" in option)
        keyring = options.get("signed-by", "")
        yield Source(match["uri"].rstrip("/"), match["suite"], tuple(match["rest"].split()), keyring)


def parse_deb822(text: str) -> Iterator[Source]:
    """Parse apt's stanza style: `Types`, `URIs`, `Suites`, `Components`, `Signed-By`; a key inside the file is ignored."""
    for stanza in stanzas(text):
        if "deb" not in stanza.get("types", "").split() or stanza.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        signed_by = stanza.get("signed-by", "")
        keyring = signed_by if signed_by.startswith("/") and len(signed_by.split()) == 1 else ""
        for uri in stanza.get("uris", "").split():
            for suite in stanza.get("suites", "").split():
                yield Source(uri.rstrip("/"), suite, tuple(stanza.get("components", "").split()), keyring)


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """Parse Debian's control format: fields, names in lower case; a line that begins with a blank continues the previous one."""
    for block in re.split(r"\n[ \t]*\n", text):
        stanza: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t":
                if key:
                    stanza[key] = f"{stanza[key]}\n{line.strip()}".strip()
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                stanza[key] = value.strip()
        if stanza:
            yield stanza


# --- snapshots ----------------------------------------------------------------------------------------------------------


def snapshots(environ: Mapping[str, str]) -> str:
    """Return the base address of snapshots.

    Empty if they are not to be used: with `QCASE_DEBIAN_SNAPSHOT=off`, or with a mirror of the user's choice.
    """
    named = environ.get(SNAPSHOT_VARIABLE, "").strip().rstrip("/")
    if environ.get(MIRROR_VARIABLE, "").split() or named == "off":
        return ""
    if named and not named.startswith(("http://", "https://")):
        hint = f"it is an address like {SNAPSHOTS}, or off"
        raise UsageError(f"{named!r} is no address of snapshots", where=SNAPSHOT_VARIABLE, hint=hint)
    return named or SNAPSHOTS


def snapshot_mirrors(base: str, snapshot: str) -> Mirrors:
    """Return the archives at a point in time. `base`: see `snapshots`."""
    main, security = (
        Source(f"{base}/{archive}/{snapshot}", "", ("main",), expired=True) for archive in ("debian", "debian-security")
    )
    return Mirrors(main, security)


_asked: dict[str, str] = {}


def snapshot_trouble(base: str, snapshot: str, suite: str) -> str:
    """Return the reason why a snapshot is unreachable; empty if it answers. One request a process, `PATIENCE` seconds at most."""
    address = f"{base}/debian/{snapshot}/dists/{suite}/Release"
    if address not in _asked:
        _asked[address] = trouble(address, PATIENCE)
    return _asked[address]


def trouble(address: str, patience: float) -> str:
    """Return the reason why an address does not answer within `patience` seconds; empty if it does."""
    import urllib.request  # 20 ms with TLS, which a run rarely needs

    def ask() -> str:
        request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - checked below
        with urllib.request.urlopen(request, timeout=patience):  # noqa: S310
            return ""

    return _within(patience, ask, lambda reason: reason) if address.startswith(("http://", "https://")) else ""


def release_time(mirrors: Mirrors, suite: str) -> str:
    """Return the name of the snapshot with a mirror's present content; empty if the mirror tells no time.

    Updates come daily and a stable suite stays unchanged for months, so the newest Release file dates the archive's state best.
    """
    found = []
    parts = [(mirrors.main, suite), (mirrors.main, f"{suite}-updates"), (mirrors.security, f"{suite}-security")]
    for source, name in parts:
        if source is not None and source.uri.startswith(("http://", "https://")):
            found.append(_within(_DATE_PATIENCE, partial(_date, f"{source.uri}/dists/{name}/Release"), lambda _: ""))
    newest = max(found, default="")
    return image_lock.stamp(image_lock.at(newest) + _TAKEN_IN) if newest else ""


def _date(address: str) -> str:
    import email.utils
    import urllib.request

    with urllib.request.urlopen(address, timeout=_DATE_PATIENCE) as answer:  # noqa: S310 - checked by the caller
        text = answer.read(_LARGEST_RELEASE).decode("utf-8", "replace")
    match = re.search(r"(?m)^Date: *(.+?) *$", text.partition("\nMD5Sum:")[0].partition("\nSHA256:")[0])
    if match is None:
        return ""
    when = email.utils.parsedate_to_datetime(match[1])
    return image_lock.stamp(when if when.tzinfo else when.replace(tzinfo=UTC))


def _within(patience: float, ask: Callable[[], str], failed: Callable[[str], str]) -> str:
    """Call `ask` with a time limit. On failure or timeout return the result of `failed` for the reason.

    Runs in a thread, since a name look-up has no timeout.
    """
    import http.client
    import urllib.error

    answer: list[str] = []

    def work() -> None:
        try:
            answer.append(ask())
        except urllib.error.HTTPError as error:
            error.close()
            answer.append(failed(f"{error.code} {error.reason}"))
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer.append(failed(str(getattr(error, "reason", "") or error or type(error).__name__)))

    thread = threading.Thread(target=work, name="ask an archive", daemon=True)
    thread.start()
    thread.join(patience)
    return answer[0] if answer else failed(f"no answer within {patience:.0f} s")
