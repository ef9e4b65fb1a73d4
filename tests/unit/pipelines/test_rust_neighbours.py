"""Files and crates beside a Rust case: they are in its key, in the copy and in `--changed`, or an error names the line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from qcase.crates import manifests
from qcase.crates.pool import read_lock
from qcase.errors import BuildError, InfraError
from qcase.host.trees import Tree
from qcase.pipelines import rust_crates, rust_neighbours, sources
from tests.processes.test_pipelines import build_context

CASE = "suite/normal/rout"
OUT = "../../../../"
PACKAGE = '[package]\nname = "{}"\nversion = "0.1.0"\n'

CRATE = {"crates/wire/Cargo.toml": PACKAGE.format("wire"), "crates/wire/src/lib.rs": ""}
PLAIN = {f"{CASE}/rust/Cargo.toml": PACKAGE.format("rout"), f"{CASE}/rust/src/main.rs": "fn main() {}\n"}


def lay(root: Path, *layers: Mapping[str, str]) -> Path:
    for layer in layers:
        for name, text in layer.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root / CASE


def found(root: Path, case: Path) -> tuple[list[str], str]:
    """The paths of all sources, and where the case is among them."""
    return [one.entry.path for one in sources.find(case, "rust", root)], sources.place(case, "rust", root)


def depends(text: str) -> dict[str, str]:
    return {f"{CASE}/rust/Cargo.toml": PACKAGE.format("rout") + text}


WAYS = {
    "dependencies": f'[dependencies]\nwire = {{ path = "{OUT}crates/wire" }}\n',
    "build-dependencies": f'[build-dependencies]\nwire = {{ path = "{OUT}crates/wire" }}\n',
    "dev-dependencies": f'[dev-dependencies.wire]\npath = "{OUT}crates/wire"\n',
    "target": f"[target.'cfg(unix)'.dependencies]\nwire = {{ path = \"{OUT}crates/wire\" }}\n",
    "patch": f'[patch.crates-io]\nwire = {{ path = "{OUT}crates/wire" }}\n',
}


@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_crate_beside_the_case_is_a_source(way: str, tmp_path: Path) -> None:
    case = lay(tmp_path, PLAIN, CRATE, depends(WAYS[way]), {"other/file": "", f"{CASE}/qemu-x86_64.toml": ""})
    rust = [f"{CASE}/rust/Cargo.toml", f"{CASE}/rust/src/main.rs"]
    assert found(tmp_path, case) == (["crates/wire/Cargo.toml", "crates/wire/src/lib.rs", *rust], CASE)
    assert tmp_path / "crates/wire" in sources.reach(case, "rust", tmp_path)
    before = sources.find(case, "rust", tmp_path)
    (tmp_path / "crates/wire/src/lib.rs").write_text("pub fn new() {}\n")
    assert sources.find(case, "rust", tmp_path) != before


CONFIGURED = {
    "paths": f'paths = ["{OUT}crates/wire"]\n',
    "patch": f'[patch.crates-io]\nwire = {{ path = "{OUT}crates/wire" }}\n',
    "directory": f'[source.crates-io]\nreplace-with = "v"\n[source.v]\ndirectory = "{OUT}crates"\n',
}


@pytest.mark.parametrize("way", sorted(CONFIGURED))
def test_what_a_configuration_of_the_case_names_is_a_source(way: str, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    case = lay(root, PLAIN, CRATE, {f"{CASE}/rust/.cargo/config.toml": CONFIGURED[way]})
    paths, place = found(root, case)
    assert ("crates/wire/src/lib.rs" in paths, place) == (True, CASE)
    lay(tmp_path, CRATE)
    lay(root, {f"{CASE}/rust/.cargo/config.toml": CONFIGURED[way].replace(OUT, f"{OUT}../")})
    with pytest.raises(BuildError, match="is outside of the workspace") as caught:
        found(root, case)
    assert caught.value.where.startswith(f"{CASE}/rust/.cargo/config.toml:")


def test_without_one_nothing_is_as_it_was_before(tmp_path: Path) -> None:
    case = lay(tmp_path, PLAIN, CRATE)
    assert found(tmp_path, case) == (["rust/Cargo.toml", "rust/src/main.rs"], "")


def test_crates_of_crates(tmp_path: Path) -> None:
    """The folder above all of them is the nearest one."""
    case = lay(
        tmp_path,
        PLAIN,
        depends('[dependencies]\none = { path = "../../one" }\n'),
        {
            "suite/normal/one/Cargo.toml": PACKAGE.format("one") + '[dependencies]\ntwo = { path = "../../two" }\n',
            "suite/two/Cargo.toml": PACKAGE.format("two") + '[dependencies]\none = { path = "../normal/one" }\n',
        },
    )
    paths, place = found(tmp_path, case)
    assert place == "normal/rout"
    assert paths == ["normal/one/Cargo.toml", "normal/rout/rust/Cargo.toml", "normal/rout/rust/src/main.rs", "two/Cargo.toml"]


WORKSPACE = {
    "Cargo.toml": """\
        [workspace]
        members = ["crates/*", "suite/*/*/rust"]
        [workspace.package]
        version = "0.3.0"
        [workspace.dependencies]
        wire = { path = "crates/wire" }
        """,
    "Cargo.lock": "version = 4\n",
    "crates/unused/Cargo.toml": PACKAGE.format("unused"),
    "crates/unused/src/lib.rs": "",
}


def test_a_workspace_above_the_case(tmp_path: Path) -> None:
    """Its manifest and its lock file are sources, and the members that the case needs."""
    member = '[package]\nname = "rout"\nversion.workspace = true\n[dependencies]\nwire.workspace = true\n'
    case = lay(tmp_path, PLAIN, CRATE, WORKSPACE, {f"{CASE}/rust/Cargo.toml": member})
    paths, place = found(tmp_path, case)
    rust = [f"{CASE}/rust/Cargo.toml", f"{CASE}/rust/src/main.rs"]
    assert (paths, place) == (["Cargo.lock", "Cargo.toml", "crates/wire/Cargo.toml", "crates/wire/src/lib.rs", *rust], CASE)


def test_a_workspace_that_does_not_want_the_case_is_none_of_it(tmp_path: Path) -> None:
    without = WORKSPACE["Cargo.toml"].replace("suite/*/*/rust", "suite/rust")
    case = lay(tmp_path, PLAIN, CRATE, WORKSPACE, {"Cargo.toml": without})
    assert found(tmp_path, case)[1] == ""
    # Once it wants it, or is made, the case is another one.
    assert tmp_path / "Cargo.toml" in sources.reach(case, "rust", tmp_path)
    assert tmp_path / "suite/Cargo.toml" in sources.reach(case, "rust", tmp_path)


NAMED = {
    'const A: &str = include_str!("../../../../../data/a.txt");': "data/a.txt",
    'const A: &[u8] = include_bytes! ( r#"../../../../../data/a.txt"# );': "data/a.txt",
    'include!["../../../../../data/code.in"];': "data/code.in",
    '#[path = "../../../../../data/shared.rs"]\nmod shared;': "data/shared.rs",
    'const A: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../../data/a.txt"));': "data/a.txt",
}


@pytest.mark.parametrize("text", sorted(NAMED))
def test_a_file_that_a_source_names(text: str, tmp_path: Path) -> None:
    data = {"data/a.txt": "a", "data/code.in": "", "data/shared.rs": "", "data/other": ""}
    case = lay(tmp_path, PLAIN, data, {f"{CASE}/rust/src/main.rs": text})
    paths, place = found(tmp_path, case)
    assert place == CASE
    assert [path for path in paths if path.startswith("data/")] == [NAMED[text]]


def test_files_that_named_files_name(tmp_path: Path) -> None:
    """Also by `mod`, whose files are beside a file that `#[path]` names."""
    data = {
        "data/shared.rs": 'mod inner;\npub(crate) mod deep;\n// mod gone;\nconst A: &[u8] = include_bytes!("a.bin");\n',
        "data/a.bin": "",
        "data/inner.rs": '#[path = "../more/last.rs"]\nmod last;\n',
        "data/deep/mod.rs": "",
        "data/gone.rs": "",
        "more/last.rs": "",
    }
    main = '#[path = "../../../../../data/shared.rs"]\nmod shared;'
    case = lay(tmp_path, PLAIN, data, {f"{CASE}/rust/src/main.rs": main})
    paths, _ = found(tmp_path, case)
    assert [path for path in paths if not path.startswith("suite/")] == sorted({*data} - {"data/gone.rs"})


@pytest.mark.parametrize("text", ['include_str!("/etc/passwd")', 'include_str!("a.txt")', 'include_str!("../../nothing")'])
def test_what_is_no_file_of_the_workspace_is_left_to_the_compiler(text: str, tmp_path: Path) -> None:
    case = lay(tmp_path, PLAIN, {f"{CASE}/rust/src/main.rs": text, f"{CASE}/rust/src/a.txt": ""})
    assert found(tmp_path, case)[1] == ""


def test_outside_of_the_workspace_is_an_error_that_says_where_it_stands(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    case = lay(root, PLAIN, depends(f'[dependencies]\nlog = "1"\nwire = {{ path = "{OUT}../crates/wire" }}\n'))
    lay(tmp_path, CRATE)
    with pytest.raises(BuildError) as caught:
        found(root, case)
    assert caught.value.where == f"{CASE}/rust/Cargo.toml:6"
    assert caught.value.what == f"{tmp_path}/crates/wire is outside of the workspace, and a build sees nothing of what is there"
    lay(root, PLAIN, {f"{CASE}/rust/src/main.rs": f'\nconst A: &str = include_str!("{OUT}../../secret");'})
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(BuildError) as caught:
        found(root, case)
    assert caught.value.where == f"{CASE}/rust/src/main.rs:2"


def test_a_link_that_leads_out_of_the_workspace_is_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    case = lay(root, PLAIN, depends(WAYS["dependencies"]))
    lay(tmp_path, CRATE)
    (root / "crates").symlink_to(tmp_path / "crates")
    with pytest.raises(BuildError, match="is outside of the workspace"):
        found(root, case)


def test_a_crate_around_the_case_is_not_taken_whole(tmp_path: Path) -> None:
    """The whole suite would be a source of each of its cases."""
    around = {
        "Cargo.toml": PACKAGE.format("all"),
        "src/lib.rs": "",
        "build.rs": "",
        "suite/normal/x/rust/Cargo.toml": "",
        "big": "",
    }
    case = lay(tmp_path, PLAIN, around, depends(f'[dependencies]\nall = {{ path = "{OUT}" }}\n'))
    paths, _ = found(tmp_path, case)
    assert paths == ["Cargo.toml", "build.rs", "src/lib.rs", f"{CASE}/rust/Cargo.toml", f"{CASE}/rust/src/main.rs"]


def test_crates_that_name_each_other_come_to_an_end(tmp_path: Path) -> None:
    case = lay(tmp_path, PLAIN, CRATE, depends(WAYS["dependencies"]))
    lay(
        tmp_path,
        {"crates/wire/Cargo.toml": PACKAGE.format("wire") + f'[dependencies]\nrout = {{ path = "../../{CASE}/rust" }}\n'},
    )
    assert rust_neighbours.of_case(case, tmp_path).taken == {tmp_path / "crates/wire"}


LOCK = """\
version = 4

[[package]]
name = "rout"
version = "0.3.0"
dependencies = ["wire"]

[[package]]
name = "wire"
version = "0.1.0"
dependencies = ["needed 1.0.0"]

[[package]]
name = "unused"
version = "0.1.0"
dependencies = ["nobodys"]
"""
FROM_CRATES_IO = """
[[package]]
name = "{}"
version = "{}"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "1111111111111111111111111111111111111111111111111111111111111111"
"""


def test_of_a_workspaces_lock_file_what_the_case_needs_is_fetched(tmp_path: Path) -> None:
    """And the manifest above names those members alone that are there."""
    both = LOCK + "".join(FROM_CRATES_IO.format(*row) for row in (("needed", "1.0.0"), ("needed", "2.0.0"), ("nobodys", "1.0.0")))
    member = '[package]\nname = "rout"\nversion.workspace = true\n[dependencies]\nwire.workspace = true\n'
    root = tmp_path / "workspace"
    case = lay(root, PLAIN, CRATE, WORKSPACE, {"Cargo.lock": both, f"{CASE}/rust/Cargo.toml": member})
    sources.copy(sources.find(case, "rust", root), tmp_path / "copy")
    context = replace(build_context(tmp_path), place=CASE, offline=True, environ={"HOME": str(tmp_path)})
    with pytest.raises(InfraError, match="fetching is switched off"):
        rust_crates.fetch(Tree(tmp_path / "copy"), context)
    shelf = tmp_path / "scratch/crates"
    assert [path.name for path in shelf.iterdir()] == ["0"]
    narrowed = manifests.parse((tmp_path / "copy/Cargo.toml").read_bytes())["workspace"]
    assert narrowed["members"] == ["crates/wire", f"{CASE}/rust"]
    local = {"rout", "wire"}
    assert [crate.title for crate in read_lock(both.encode(), "", "", local).crates] == ["needed 1.0.0"]
