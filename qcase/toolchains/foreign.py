"""Images that others made: found by digest, pulled, recorded."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from qcase.config.image_lock import LOCK_FORMAT
from qcase.containers.engine import Engine
from qcase.errors import InfraError, UsageError
from qcase.events import Emit
from qcase.toolchains import oci
from qcase.toolchains.build_log import say
from qcase.toolchains.recipes import sha256
from qcase.toolchains.records import Image, read_record, write_record

# --- images of others ---------------------------------------------------------------------------------------------------

_BY_DIGEST = re.compile(r"[^@\s]+@sha256:(?P<digest>[0-9a-f]{64})")


def foreign_identity(reference: str) -> str:
    """Return the identity of a third-party image: its digest, regardless of the registry.

    Raises `UsageError` without a digest.
    """
    match = _BY_DIGEST.fullmatch(reference)
    if match is None:
        raise UsageError(
            "an image of others is taken by its digest alone: the same tag can be another image tomorrow",
            where=f'image = "{reference}"',
            hint='write "name@sha256:…"; `docker images --digests` shows it; of one made here, `docker images --no-trunc`',
        )
    return sha256({"format": LOCK_FORMAT, "foreign": match["digest"]})


def known_foreign(reference: str, cache: Path) -> str | None:
    """Return the recorded identity of a third-party image; None if this cache has not used it yet. Asks no engine."""
    record = read_record(cache, _record_of_foreign(reference))
    return record["identity"] if record else None


def _record_of_foreign(reference: str) -> str:
    return f"foreign-{reference.rpartition('@sha256:')[2]}"


def foreign(
    reference: str,
    engine: Engine,
    cache: Path,
    emit: Emit | None = None,
    *,
    offline: bool = False,
    believed: bool = True,
) -> Image:
    """Return a third-party image by `name@sha256:…`. Pull it if the engine lacks it, unless `offline`. Raises `InfraError`.

    An image that `qcase images push` uploaded carries the identity of the same image built here. With `believed`, the workspace
    that names the image is trusted to use that identity. Otherwise, and for any other image, the digest is the identity.
    """
    by_digest = foreign_identity(reference)
    found = _pulled(reference, engine, emit, offline=offline)
    with engine.faults(f"looking at the image {reference}"):
        shown = engine.api.inspect_image(found)  # type: ignore[no-untyped-call]
        machine = str(engine.api.version()["Arch"])
    if shown.get("Architecture") not in (None, "", machine):
        what = f"it is for {shown.get('Os')}/{shown['Architecture']}, and this engine runs linux/{machine}"
        raise InfraError(what, where=reference, hint="a list of images has one for each: name that one by its own digest")
    identity = (oci.sealed_identity(shown) if believed else None) or by_digest
    if believed and identity != known_foreign(reference, cache):
        record = {"format": LOCK_FORMAT, "identity": identity, "image": found, "reference": reference}
        with contextlib.suppress(InfraError):  # the store may be read-only
            write_record(cache, _record_of_foreign(reference), record)
    return Image(reference, found, identity)


def _pulled(reference: str, engine: Engine, emit: Emit | None, *, offline: bool) -> str:
    """Return the engine's id of a third-party image. Pull it if the engine lacks it, unless `offline`.

    An image that was made here and never pushed has no digest of a registry. The engine's id, over all that it consists of, takes
    its place.
    """
    found = engine.image_id(reference) or engine.image_id(f"sha256:{reference.rpartition('@sha256:')[2]}")
    if found is None:
        if offline:
            raise InfraError("is not there, and fetching is switched off", where=reference, hint="run once without --offline")
        say(emit, f"pulling {reference}")
        where = f"pulling {reference}"
        try:
            with engine.faults(where):
                for message in engine.api.pull(reference, stream=True, decode=True):
                    if "error" in message:
                        raise InfraError(str(message["error"]), where=where)
        except InfraError as error:
            hint = error.hint or "does the engine reach the registry, and has it an image of that digest?"
            raise InfraError(" ".join(error.what.split()), where=where, hint=hint) from None
        found = engine.image_id(reference)
        if found is None:
            raise InfraError("pulled, and not there", where=reference)
    return found
