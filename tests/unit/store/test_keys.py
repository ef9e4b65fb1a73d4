"""Keys: what matters moves them, what does not leaves them, and no two values share their bytes."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcase import canonical
from qcase.disk import image_digest
from qcase.errors import BuildError, InfraError
from qcase.host.trees import Tree
from qcase.store import keys, listings


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A folder of sources with one of everything."""
    root = tmp_path / "case"
    (root / "c/include").mkdir(parents=True)
    (root / "c/main.c").write_text("int main(void) { return 0; }\n")
    (root / "c/prebuild.sh").write_text("true\n")
    (root / "c/prebuild.sh").chmod(0o755)
    (root / "c/link").symlink_to("main.c")
    (root / "c/empty").mkdir()
    (root / "c/include/a.h").write_text("")
    return root


# --- canonical JSON ---------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
# Also strings that are no text: lone surrogates, as names that are no UTF-8 become.
NAMES = st.text(st.characters(exclude_categories=()), max_size=4)
VALUES = st.recursive(
    SCALARS | NAMES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)


def exactly(value: object) -> object:
    """A value that only equals what is of the same types all through: 1, 1.0 and True are three."""
    if isinstance(value, dict):
        return ("dict", frozenset((name, exactly(member)) for name, member in value.items()))
    if isinstance(value, list):
        return ("list", tuple(exactly(member) for member in value))
    return (type(value), repr(value))


@given(VALUES, VALUES)
def test_two_values_never_share_their_bytes(one: canonical.JSON, other: canonical.JSON) -> None:
    assert (canonical.canonical(one) == canonical.canonical(other)) == (exactly(one) == exactly(other))


@given(VALUES)
def test_the_bytes_say_the_value(value: canonical.JSON) -> None:
    assert exactly(canonical.parse(canonical.canonical(value))) == exactly(value)


def test_two_halves_of_a_character_are_not_the_character() -> None:
    assert canonical.canonical("\ud83d\ude00") != canonical.canonical("\U0001f600")


def test_order_does_not_count() -> None:
    assert canonical.canonical({"a": 1, "b": (2, "x")}) == canonical.canonical({"b": [2, "x"], "a": 1}) == b'{"a":1,"b":[2,"x"]}'


@pytest.mark.parametrize("value", [b"x", {"a": b"x"}, {1: "x"}, {"a": {2}}, Path("x"), object()])
def test_what_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical.canonical(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
def test_what_is_no_number_is_refused(value: canonical.JSON) -> None:
    with pytest.raises(ValueError, match="part of a key"):
        canonical.canonical(value)


# --- trees ------------------------------------------------------------------------------------------------------------------


def test_a_listing_says_what_is_there(case: Path) -> None:
    rows = [(entry.path, entry.type) for entry in listings.tree_listing(case)]
    assert rows == [
        ("c/empty", "dir"),
        ("c/include/a.h", "file"),
        ("c/link", "link"),
        ("c/main.c", "file"),
        ("c/prebuild.sh", "exec"),
    ]
    assert {entry.path: entry.content for entry in listings.tree_listing(case)}["c/link"] == "main.c"


def both(one: Callable[[Path], object], other: Callable[[Path], object]) -> Callable[[Path], object]:
    def edit(case: Path) -> None:
        one(case)
        other(case)

    return edit


MATTERS: dict[str, Callable[[Path], object]] = {
    "a byte": lambda case: (case / "c/main.c").write_text("int main(void) { return 1; }\n"),
    "a name": lambda case: (case / "c/main.c").rename(case / "c/mein.c"),
    "a new file": lambda case: (case / "c/new").write_text(""),
    "a file less": lambda case: (case / "c/main.c").unlink(),
    "executable": lambda case: (case / "c/main.c").chmod(0o744),
    "not executable": lambda case: (case / "c/prebuild.sh").chmod(0o644),
    "a target": both(lambda case: (case / "c/link").unlink(), lambda case: (case / "c/link").symlink_to("./main.c")),
    "a link made a file": both(lambda case: (case / "c/link").unlink(), lambda case: (case / "c/link").write_text("main.c")),
    "an empty folder less": lambda case: (case / "c/empty").rmdir(),
    "an empty folder more": lambda case: (case / "c/empty/er").mkdir(),
    "a folder made a file": both(lambda case: (case / "c/empty").rmdir(), lambda case: (case / "c/empty").write_text("")),
    "a name that is no text": lambda case: Path(os.fsdecode(os.fsencode(case) + b"/\xff")).write_text(""),
}
DOES_NOT_MATTER: dict[str, Callable[[Path], object]] = {
    "mtime": lambda case: os.utime(case / "c/main.c", (1, 1)),
    "other mode bits": lambda case: (case / "c/main.c").chmod(0o600),
    "a group's executable bit": lambda case: (case / "c/prebuild.sh").chmod(0o700),
    "a folder's mode": lambda case: (case / "c").chmod(0o700),
    "what a link leads to": lambda case: (case.parent / "elsewhere").write_text("x"),
    "the same bytes again": lambda case: (case / "c/main.c").write_text((case / "c/main.c").read_text()),
    "a file that came and went": both(lambda case: (case / "c/x").write_text(""), lambda case: (case / "c/x").unlink()),
    "what is ignored": both(lambda case: (case / ".git/x").mkdir(parents=True), lambda case: (case / "c/.git").write_text("")),
}


def tree(case: Path) -> str:
    return listings.tree_digest(case, ignore=(".git",))


@pytest.mark.parametrize("edit", MATTERS)
def test_an_edit_that_matters_moves_the_key(edit: str, case: Path) -> None:
    before = tree(case)
    MATTERS[edit](case)
    assert tree(case) != before


@pytest.mark.parametrize("edit", DOES_NOT_MATTER)
def test_an_edit_that_does_not_matter_leaves_the_key(edit: str, case: Path) -> None:
    (case / "c/outside").symlink_to("../../elsewhere")
    before = tree(case)
    DOES_NOT_MATTER[edit](case)
    assert tree(case) == before


def test_the_place_does_not_matter(case: Path) -> None:
    before = tree(case)
    moved = case.parent / "deeper/place"
    moved.parent.mkdir()
    case.rename(moved)
    assert tree(moved) == before
    (case.parent / "through").symlink_to(moved)
    assert tree(case.parent / "through") == before


def test_a_loop_of_links_ends(case: Path) -> None:
    (case / "c/self").symlink_to("..")
    assert ("c/self", "link", "..") in [(e.path, e.type, e.content) for e in listings.tree_listing(case)]


def test_what_cannot_be_stored_is_named(case: Path) -> None:
    os.mkfifo(case / "c/pipe")
    with pytest.raises(BuildError, match=r"c/pipe is a fifo"):
        listings.tree_listing(case)
    (case / "c/pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(case)  # a socket's path must be short
        server.bind("sock")
        os.chdir(here)
    with pytest.raises(BuildError, match=r"sock is a socket"):
        listings.tree_listing(case)
    with pytest.raises(BuildError, match=r"sock in .* is a socket"):
        listings.overlay_content_digest(Tree(case))
    with pytest.raises(BuildError, match=r"cannot read"):
        listings.tree_listing(case / "nowhere")


# --- overlays ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        lambda case: (case / "c/main.c").chmod(0o4644),
        lambda case: (case / "c/main.c").chmod(0o640),
        lambda case: (case / "c").chmod(0o1755),
        lambda case: (case / "c/empty").chmod(0o700),
        lambda case: (case / "c/main.c").write_text(""),
        lambda case: (case / "c/more").mkdir(),
    ],
)
def test_an_overlay_counts_all_modes(edit: Callable[[Path], object], case: Path) -> None:
    before = listings.overlay_content_digest(Tree(case))
    edit(case)
    assert listings.overlay_content_digest(Tree(case)) != before


def test_an_overlay_does_not_count_times_or_its_own_mode(case: Path) -> None:
    before = listings.overlay_content_digest(Tree(case))
    os.utime(case / "c/main.c", (1, 1))
    case.chmod(0o700)
    assert listings.overlay_content_digest(Tree(case)) == before
    copy = shutil.copytree(case, case.parent / "copy", symlinks=True)
    assert listings.overlay_content_digest(Tree(copy)) == before


# --- large files ------------------------------------------------------------------------------------------------------------


def test_an_image_is_digested_by_what_it_reads_as(tmp_path: Path) -> None:
    size = 40 << 20
    holes, full = tmp_path / "holes", tmp_path / "full"
    with holes.open("wb") as file:
        file.truncate(size)
        for place in (0, 70_000, 20 << 20, size - 1):
            file.seek(place)
            file.write(b"x")
    full.write_bytes(holes.read_bytes())
    assert holes.stat().st_blocks < full.stat().st_blocks
    before = image_digest.file_digest(holes)
    assert image_digest.file_digest(full) == before
    for place in (1, 65_535, 65_536, 19 << 20, size - 2):
        with full.open("r+b") as file:
            file.seek(place)
            file.write(b"y")
            file.flush()
            assert image_digest.file_digest(full) != before
            file.seek(place)
            file.write(b"\0")
    assert image_digest.file_digest(full) == before
    for other in (size - 1, size + 1, size + 65_536):
        os.truncate(holes, other)
        assert image_digest.file_digest(holes) != before


def test_a_system_that_reads_in_small_pieces_changes_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(200_000))
    before = image_digest.file_digest(path), image_digest.digest(path)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 5000), offset))
    assert (image_digest.file_digest(path), image_digest.digest(path)) == before


def test_two_empty_files_of_different_size_differ(tmp_path: Path) -> None:
    digests = set()
    for size in (0, 1, 65_536, 65_537):
        (tmp_path / "f").write_bytes(b"")
        os.truncate(tmp_path / "f", size)
        digests.add(image_digest.file_digest(tmp_path / "f"))
    assert len(digests) == 4
    with pytest.raises(InfraError, match="cannot read"):
        image_digest.file_digest(tmp_path / "nothing")


# --- the two keys -----------------------------------------------------------------------------------------------------------


def overlay(case: Path, **changed: object) -> keys.Key:
    arguments: dict[str, object] = {
        "pipeline": "c",
        "recipe_version": 1,
        "arch": "x86_64",
        "target": "x86_64-unknown-none",
        "toolchain_identity": "a" * 64,
        "config_fields": {"test_commands": ["/usr/bin/a"]},
        "env": {"REGION": "eu", "UNSET": None},
        "base_digest": None,
        "lock": None,
        "extra": {},
    }
    return keys.overlay_key(sources=listings.tree_listing(case), **{**arguments, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pipeline": "sh"}, 'pipeline: "c" → "sh"'),
        ({"recipe_version": 2}, "recipe: 1 → 2"),
        ({"arch": "aarch64"}, 'arch: "x86_64" → "aarch64"'),
        ({"target": "t"}, 'target: "x86_64-unknown-none" → "t"'),
        ({"toolchain_identity": "b" * 64}, "toolchain: aaaaaaaaaaaa → bbbbbbbbbbbb"),
        ({"toolchain_identity": None}, "toolchain: aaaaaaaaaaaa → none"),
        ({"config_fields": {"test_commands": ["/usr/bin/b"]}}, 'config.test_commands[0]: "/usr/bin/a" → "/usr/bin/b"'),
        ({"env": {"REGION": "", "UNSET": None}}, 'env.REGION: "eu" → ""'),
        ({"env": {"REGION": "eu", "UNSET": ""}}, 'env.UNSET: none → ""'),
        ({"env": {"REGION": "eu"}}, "env.UNSET: gone, was none"),
        ({"base_digest": "c" * 64}, "base: none → cccccccccccc"),
        ({"lock": "x"}, 'lock: none → "x"'),
        ({"extra": {"helper": 1}}, "extra.helper: new, 1"),
    ],
)
def test_each_part_of_an_overlays_key_counts_and_is_named(changed: dict[str, object], said: str, case: Path) -> None:
    before, after = overlay(case), overlay(case, **changed)
    assert before.digest == overlay(case).digest
    assert after.digest != before.digest
    assert keys.differences(before.parts, after.parts) == [said]
    assert keys.differences(before.parts, before.parts) == []


def test_differences_go_down_to_the_file(case: Path) -> None:
    before = overlay(case)
    (case / "c/main.c").write_text("other")
    (case / "c/prebuild.sh").chmod(0o644)
    (case / "c/empty").rmdir()
    (case / "c/new\nline").write_text("")
    after = overlay(case)
    assert keys.differences(before.parts, after.parts) == [
        "sources: c/empty is gone",
        "sources: c/main.c changed",
        "sources: 'c/new\\nline' is new",
        "sources: c/prebuild.sh is file, was exec",
    ]
    assert canonical.digest(after.parts) == after.digest  # the parts that are kept are the parts that were counted


def test_an_images_key_counts_base_order_and_injector() -> None:
    def image(base: str = "b", overlays: tuple[str, ...] = ("1", "2"), injector: int = 1) -> str:
        return keys.image_key(base_digest=base, overlays=overlays, injector=injector).digest

    assert len({image(), image("c"), image(overlays=("2", "1")), image(overlays=("12",)), image(injector=2)}) == 5
    assert image() == image()
