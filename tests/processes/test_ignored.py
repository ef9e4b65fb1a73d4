"""What tools leave beside the sources is no source: it moves no key, and no build sees it."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qcase.containers import container
from qcase.errors import BuildError, InfraError
from qcase.host import git as qcase_git
from qcase.host import process
from qcase.pipelines import sources
from qcase.suite.ignored import MOST, Ignored

TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# made by a tool\n"


def git(root: Path, *words: str) -> None:
    process.run(["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(root), *words])


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def found(root: Path) -> list[str]:
    return [source.entry.path for source in sources.find(root / "suite/x", "c", root, (), Ignored())]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "w"
    write(root, "suite/x/c/main.c", "suite/x/c/kept.o", "suite/x/sub/data")
    (root / ".gitignore").write_text("build/\n*.o\n")
    git(tmp_path, "init", "-q", "w")
    git(root, "add", "-f", ".")
    git(root, "commit", "-qm", "all")
    return root


SOURCES = ["c/kept.o", "c/main.c", "sub/data"]


def left_by_a_build(root: Path) -> None:
    write(root, "suite/x/c/main.o", "suite/x/c/build/deep/a.out", "suite/x/c/build/CMakeCache.txt", "suite/x/build/log")


def left_by_a_tool(root: Path) -> None:
    write(root, "suite/x/c/.cache/data", "suite/x/c/target/debug/x")
    for cache in ("suite/x/c/.cache", "suite/x/c/target"):
        (root / cache / "CACHEDIR.TAG").write_text(TAG)


@pytest.mark.parametrize("leave", [left_by_a_build, left_by_a_tool])
def test_leftovers_are_no_sources(leave: Callable[[Path], None], root: Path, tmp_path: Path) -> None:
    assert found(root) == SOURCES
    leave(root)
    assert found(root) == SOURCES
    sources.copy(sources.find(root / "suite/x", "c", root, (), Ignored()), tmp_path / "copy")
    assert (
        sorted(str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()) == SOURCES
    )


def test_what_was_left_out_is_told(root: Path) -> None:
    left_by_a_build(root)
    left_by_a_tool(root)
    assert sources.left_out(root / "suite/x", "c", Ignored()) == ["build/", "c/.cache/", "c/build/", "c/main.o", "c/target/"]


def test_a_new_file_is_a_source_although_git_does_not_know_it_yet(root: Path) -> None:
    write(root, "suite/x/c/new.c")
    assert found(root) == ["c/kept.o", "c/main.c", "c/new.c", "sub/data"]


def test_what_a_link_names_is_a_source_although_git_ignores_it(root: Path) -> None:
    """Such as what another tool made for the case. Of a folder that a link names, what is ignored in it is none."""
    write(root, "made/blob.o", "made/shared/data", "made/shared/x.o")
    (root / "suite/x/c/blob").symlink_to("../../../made/blob.o")
    (root / "suite/x/c/shared").symlink_to("../../../made/shared")
    assert found(root) == ["c/blob", "c/kept.o", "c/main.c", "c/shared/data", "sub/data"]


@pytest.mark.parametrize("pattern", ["c", "suite/*/c", "/suite/x/c/"])
def test_the_folder_of_sources_is_one_although_git_ignores_it(root: Path, pattern: str) -> None:
    """Such as one that a script fetched, or made a link to what it fetched."""
    (root / ".gitignore").write_text(f"{pattern}\nfetched/\n*.o\n")
    git(root, "rm", "-rq", "--cached", "suite/x/c")
    write(root, "suite/x/c/main.o")
    assert set(found(root)) - {"c/kept.o", "c/main.o"} == {"c/main.c", "sub/data"}
    assert "c/" not in sources.left_out(root / "suite/x", "c", Ignored())
    if pattern.endswith("/"):
        return  # which means no link
    (root / "suite/x/c").rename(root / "fetched")
    (root / "suite/x/c").symlink_to("../../fetched")
    assert "c/main.c" in found(root)


def test_a_lock_of_cargo_counts_where_it_is(root: Path) -> None:
    """Many library crates have git ignore it."""
    (root / "suite/x/.gitignore").write_text("Cargo.lock\n")
    write(root, "suite/x/rust/Cargo.toml", "suite/x/rust/Cargo.lock", "suite/x/docs/Cargo.lock")
    paths = [source.entry.path for source in sources.find(root / "suite/x", "rust", root, (), Ignored())]
    assert "rust/Cargo.lock" in paths
    assert "docs/Cargo.lock" not in paths
    assert sources.left_out(root / "suite/x", "rust", Ignored()) == ["docs/"]


def test_all_files_of_a_copy_are_equally_old(root: Path, tmp_path: Path) -> None:
    """Else a makefile takes what a release brings along for older than what it was made from."""
    os.utime(root / "suite/x/c/main.c", (1, 1))
    sources.copy(sources.find(root / "suite/x", "c", root, (), Ignored()), tmp_path / "copy")
    times = {path.stat().st_mtime for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert times == {container.SOURCE_DATE_EPOCH}


@pytest.mark.parametrize("begin", [b"\x7fELF\2\1", b"!<arch>\nx", b"!<thin>\n"])
def test_what_was_compiled_elsewhere_is_older_than_its_source(begin: bytes, root: Path, tmp_path: Path) -> None:
    """An object that another build left there, and git does not ignore, would hide what was edited since."""
    (root / "suite/x/c/main.obj").write_bytes(begin)
    sources.copy(sources.find(root / "suite/x", "c", root, (), Ignored()), tmp_path / "copy")
    assert (tmp_path / "copy/c/main.obj").stat().st_mtime < (tmp_path / "copy/c/main.c").stat().st_mtime
    assert (tmp_path / "copy/c/main.obj").read_bytes() == begin


def test_a_tag_that_is_none(root: Path) -> None:
    write(root, "suite/x/c/data/CACHEDIR.TAG", "suite/x/c/data/x")
    assert "c/data/x" in found(root)


def test_without_git_and_outside_of_a_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "suite/x/c/main.o")
    with monkeypatch.context() as patched:
        patched.setenv("PATH", "/nowhere")
        assert "c/main.o" in found(root)
    shutil.rmtree(root / ".git")
    assert "c/main.o" in found(root)


def test_a_workspace_in_an_ignored_folder(root: Path) -> None:
    """Such as one that a test made: git ignores all of it, and it is all that there is."""
    write(root, "build/w/suite/x/c/main.c")
    inner = root / "build/w"
    assert [source.entry.path for source in sources.find(inner / "suite/x", "c", inner, (), Ignored())] == ["c/main.c"]


def test_a_repository_within_has_its_own_word(root: Path) -> None:
    write(root, "suite/y/c/main.c", "suite/y/c/main.o", "suite/y/c/x.log")
    git(root / "suite", "init", "-q", "y")
    (root / "suite/y/.gitignore").write_text("*.log\n")
    paths = [source.entry.path for source in sources.find(root / "suite/y", "c", root, (), Ignored())]
    assert "c/main.o" in paths
    assert "c/x.log" not in paths


def clone(root: Path, place: Path) -> None:
    """Put a repository of a project into a place, with a leftover that it ignores."""
    git(root, "init", "-q", str(place))
    (place / ".gitignore").write_text("/build/\n")
    write(place, "main.c", "lib/main.c")
    git(place, "add", ".")
    git(place, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-q", "-m", "x")
    write(place, "build/main.o")


@pytest.mark.parametrize(
    "shape", ["submodule", "clone", "ignored clone", "deep clone", "submodule of a submodule", "without git"]
)
def test_a_project_below_a_case_has_its_own_word(shape: str, root: Path) -> None:
    inner = root / "suite/y/c" / ("third/deep" if shape == "deep clone" else "")
    inner.parent.mkdir(parents=True, exist_ok=True)
    clone(root, inner)
    if shape == "submodule of a submodule":
        clone(root, inner / "third")
        git(inner, "add", "third")
    if shape.startswith("submodule"):
        git(root, "add", "suite/y/c")
    if shape == "ignored clone":
        (root / ".gitignore").write_text("/suite/y/c/\n")
    if shape == "without git":
        shutil.rmtree(root / ".git")
    paths = [source.entry.path for source in sources.find(root / "suite/y", "c", root, (), Ignored())]
    assert not [path for path in paths if path.endswith(".o")]
    assert [path for path in paths if path.endswith("lib/main.c")]


def test_what_a_user_ignores_everywhere_is_a_source(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a key would not be the same for all."""
    write(tmp_path, "home/.config/git/ignore")
    (tmp_path / "home/.config/git/ignore").write_text("*.mine\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    (root / ".git/info/exclude").write_text("*.ours\n")
    write(root, "suite/x/c/a.mine", "suite/x/c/a.ours")
    assert {"c/a.mine", "c/a.ours"} <= set(found(root))


HOOK = "touch MARK; cat"


def runs_something(folder: Path, mark: Path) -> None:
    """Have a repository run a program whenever git is asked about it."""
    hook = HOOK.replace("MARK", str(mark))
    for key, value in (
        ("core.fsmonitor", hook),
        ("core.untrackedCache", "true"),
        ("core.hooksPath", str(mark.parent / "hooks")),
        ("filter.x.clean", hook),
        ("core.sshCommand", hook),
        ("protocol.ext.allow", "always"),
        ("remote.origin.url", f"ext::sh -c touch%20{mark}"),
        ("remote.origin.promisor", "true"),
        ("extensions.partialClone", "origin"),
        ("core.repositoryFormatVersion", "1"),
    ):
        git(folder, "config", key, value)
    (folder / ".git/info/attributes").write_text("* filter=x\n")


def test_nothing_of_a_repository_is_run(root: Path, tmp_path: Path) -> None:
    """Its configuration may be a stranger's: that of an archive, or of what a kernel's build has put there."""
    mark = tmp_path / "ran"
    left_by_a_build(root)
    write(root, "suite/x/.gitignore")
    git(root, "add", "suite/x/.gitignore")
    git(root, "update-index", "--skip-worktree", "suite/x/.gitignore")
    (root / "suite/x/.gitignore").unlink()
    for path in (root / ".git/objects").glob("??/*"):  # so that git would fetch what it has to read
        path.unlink()
    runs_something(root, mark)
    git(root, "ls-files", "--others")
    assert mark.exists()  # git by itself does
    mark.unlink()
    assert found(root) == SOURCES
    assert not mark.exists()


@pytest.mark.parametrize("shape", ["linked", "split", "sha256", "owned by another", "configuration that is none"])
def test_repositories_of_every_shape(shape: str, root: Path, tmp_path: Path) -> None:
    if shape == "linked":
        git(root, "worktree", "add", "-q", str(tmp_path / "linked"))
        root = tmp_path / "linked"
    elif shape == "split":
        git(root, "update-index", "--split-index")
        assert list((root / ".git").glob("sharedindex.*"))
    elif shape == "sha256":
        shutil.rmtree(root / ".git")
        git(root, "init", "-q", "--object-format=sha256")
        git(root, "add", "-f", ".")
    elif shape == "owned by another":
        if os.geteuid() != 0:
            pytest.skip("only root can give a repository away")
        os.chown(root / ".git", 12345, 12345)
    else:
        (root / ".git/config").write_text("[[[")
    left_by_a_build(root)
    assert found(root) == SOURCES


def test_a_work_tree_whose_repository_is_not_there(root: Path, tmp_path: Path) -> None:
    """Nobody knows what git keeps in it, so nothing is left out."""
    git(root, "worktree", "add", "-q", str(tmp_path / "linked"))
    shutil.rmtree(root)
    assert found(tmp_path / "linked") == SOURCES
    write(tmp_path / "linked", "suite/x/c/main.o")
    assert "c/main.o" in found(tmp_path / "linked")


def index_of(root: Path, *names: str) -> None:
    """Write an index of submodules whose names git itself refuses."""
    rows = []
    for name in names:
        raw = name.encode()
        entry = bytes(24) + (0o160000).to_bytes(4, "big") + bytes(12) + b"\1" * 20 + min(len(raw), 0xFFF).to_bytes(2, "big") + raw
        rows.append(entry + bytes(8 - len(entry) % 8))
    data = b"DIRC" + (2).to_bytes(4, "big") + len(rows).to_bytes(4, "big") + b"".join(rows)
    (root / ".git/index").write_bytes(data + hashlib.sha1(data).digest())


def test_the_names_in_an_index_lead_nowhere_else(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a stranger's: git reads any name from it."""
    other = tmp_path / "other"
    clone(root, other)
    case = root / "suite/x"
    (case / "link").symlink_to(other)
    (case / "c/linked").symlink_to(other, target_is_directory=True)
    clone(root, case / "c/own")
    names = [
        "..",
        "../other",
        "suite/x/..",
        "suite/x/../../../other",
        str(other),
        ".",
        "suite/x/link",
        "suite/x/c/linked",
        "suite/x/c/own",
    ]
    index_of(root, *sorted(names))
    listed = process.run(["git", "-C", str(root), "ls-files", "--stage"]).stdout.decode()
    assert all(f"\t{name}\n" in listed for name in names)
    asked = []

    @contextmanager
    def watched(repository: Path) -> Iterator[qcase_git.Git]:
        asked.append(os.path.realpath(repository))
        with real(repository) as answers:
            yield answers

    real = qcase_git.asked
    monkeypatch.setattr(qcase_git, "asked", watched)
    paths = Ignored().within(case)
    assert sorted(asked) == [str(root), str(case / "c/own")]
    assert case / "c/own/build" in paths
    assert all(case in path.parents and ".." not in path.parts for path in paths)


def test_repositories_in_each_other_and_too_many(root: Path) -> None:
    place = root / "suite/x/c"
    for _ in range(60):
        place = place / "in"
        place.mkdir()
        git(place, "init", "-q")
    write(place, "a.o", ".gitignore")
    (place / ".gitignore").write_text("*.o\n")
    assert place / "a.o" in Ignored().within(root / "suite/x")
    for number in range(MOST):
        (root / f"suite/x/many/{number}/.git").mkdir(parents=True)
        write(root, f"suite/x/many/{number}/a.c")
    with pytest.raises(BuildError, match=f"more than {MOST} repositories"):
        Ignored().within(root / "suite/x")
    assert Ignored().within(root / "suite/x/c")


@pytest.mark.parametrize("name", [b"a\0b", b"a" * 5000])
def test_names_in_a_repository_that_are_none(name: bytes, root: Path) -> None:
    (root / ".git/commondir").write_bytes(name)
    Ignored().within(root)
    shutil.rmtree(root / ".git")
    (root / ".git").write_bytes(b"gitdir: " + name)
    assert Ignored().within(root) == frozenset()


def test_a_repository_at_which_git_hangs_is_an_error_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git waits for a fifo; each of the repositories in a stranger's tree may have some."""
    monkeypatch.setattr(qcase_git, "TIMEOUT", 3.0)
    for name in ("one", "two", "three"):
        shutil.copytree(root / ".git", root / name / ".git")
        (root / name / "below").mkdir()
        os.mkfifo(root / name / "below/.gitignore")
    asked = Ignored()
    with pytest.raises(InfraError, match="git did not say within 3 s which files it ignores"):
        asked.within(root)
    (root / "two/below/.gitignore").unlink()
    for place in (root, root / "two"):
        with pytest.raises(InfraError, match=r"git did not say .*"):
            asked.within(place)
    assert Ignored().within(root / "two") == frozenset()


def test_the_configuration_of_a_repository_does_not_keep_qcase_busy(root: Path) -> None:
    (root / ".git/config").write_text("\n" * 60_000 + "[extensions]\n\tobjectFormat = sha1\n")
    began = time.process_time()
    Ignored().within(root)
    assert time.process_time() - began < 10
