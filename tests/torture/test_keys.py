"""Random folders of sources and random edits of a workspace: exactly those keys move that an edit concerns."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcase.store import listings
from tests.unit.prepare.test_explain import MOVES, STAYS, keys_of, make_workspace

# A case as a dictionary of what is in it; edits are made to that, and both are written to the disk.
FILES = st.dictionaries(
    st.sampled_from(["a", "b", "d/a", "d/b", "d/e/a", "ä", "a b", "a\nb", "\udcff"]),
    st.tuples(st.just("file"), st.binary(max_size=3), st.booleans())
    | st.tuples(st.just("link"), st.sampled_from(["a", "b", "d"])),
    max_size=5,
)


def write(root: Path, files: dict[str, tuple[object, ...]], *, noise: int) -> None:
    """`noise` moves everything that must not count: the order of writing, times, the other mode bits."""
    for name, what in sorted(files.items(), reverse=bool(noise)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if what[0] == "link":
            path.symlink_to(str(what[1]))
        else:
            assert isinstance(what[1], bytes)
            path.write_bytes(what[1])
            path.chmod((0o700 if what[2] else 0o600) | (0o055 if noise else 0))
            os.utime(path, (noise, noise))


@settings(max_examples=300, deadline=None)
@given(FILES, FILES)
def test_a_digest_is_that_of_the_same_files_and_no_others(
    one: dict[str, tuple[object, ...]], other: dict[str, tuple[object, ...]]
) -> None:
    with tempfile.TemporaryDirectory() as here:
        digests = []
        for number, files in enumerate((one, other, one)):
            root = Path(here, str(number))
            root.mkdir()
            write(root, files, noise=number)
            digests.append(listings.tree_digest(root))
    assert digests[0] == digests[2]
    assert (digests[0] == digests[1]) == (one == other)


# Edits of the same thing: of two of them the last one would decide.
SAME = [{"a command of a group", "a timeout of a group"}, {"an executable bit", "a mode that is no executable bit"}]
SAME += [{"a timeout", "the command that is typed"}, {"a package", "a timeout of a case with packages"}]
# They change what another edit may write.
LAST = ("an executable bit", "an mtime", "a mode that is no executable bit", "an executable bit of that script")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.permutations([*MOVES, *STAYS]), count=st.integers(0, 8), other=st.randoms(use_true_random=False))
def test_edits_in_any_order_move_their_keys_alone(edits: list[str], count: int, other: Random, tmp_path: Path) -> None:
    """Any edits in any order: exactly those keys move which one of the edits concerns; and the same edits in another order and
    another place give the same keys."""
    chosen = edits[:count]
    for pair in SAME:
        if pair <= set(chosen):
            chosen.remove(sorted(pair)[1])
    places = [make_workspace(tmp_path / name) for name in ("one", "two")]
    try:
        before = keys_of(places[0])
        shuffled = chosen[:]
        other.shuffle(shuffled)
        for place, order in zip(places, (chosen, shuffled), strict=True):
            for edit in sorted(order, key=lambda name: name in LAST):
                (MOVES[edit][0] if edit in MOVES else STAYS[edit])(place)
        after = keys_of(places[0])
        concerned = {name for edit in chosen if edit in MOVES for name in MOVES[edit][1]}
        assert {name for name in before if before[name] != after[name]} == concerned
        assert keys_of(places[1]) == after
    finally:
        for place in places:
            shutil.rmtree(place)
