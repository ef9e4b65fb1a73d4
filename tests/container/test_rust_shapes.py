"""Shapes of ordinary Rust projects: each builds as its authors meant, for each guest, and each error says what to do."""

from __future__ import annotations

import pytest

from qcase.arch import Arch
from qcase.errors import BuildError
from qcase.host import process
from qcase.host.trees import Tree
from qcase.pipelines.elf_libraries import elf_files
from tests.container.builds import Case
from tests.container.test_rust import PACKAGE, run_program

GUESTS = pytest.mark.parametrize("arch", [Arch.X86_64, Arch.AARCH64, Arch.RISCV64])  # those that qcase has

TRIPLES = ("x86_64", "aarch64", "riscv64gc")
PRINTS_CFG = 'fn main() { println!("{} {} {}", cfg!(fast), cfg!(far), cfg!(near)); }\n'

FLAGS = {
    "build": ('[build]\nrustflags = ["--cfg", "fast"]\n', "true false false"),
    "text": ('[build]\nrustflags = "--cfg fast"\n', "true false false"),
    "cfg": ("[target.'cfg(target_env = \"musl\")']\nrustflags = ['--cfg', 'far']\n", "false true false"),
    # cargo's own rule: what is for the target hides what is for all
    "both": ("[build]\nrustflags = ['--cfg=fast']\n[target.'cfg(unix)']\nrustflags = ['--cfg=far']\n", "false true false"),
    "another": ("[build]\nrustflags = ['--cfg=fast']\n[target.'cfg(windows)']\nrustflags = ['--cfg=far']\n", "true false false"),
    "triple": (
        "".join(f"[target.{arch}-unknown-linux-musl]\nrustflags = ['--cfg=near']\n" for arch in TRIPLES),
        "false false true",
    ),
}


@GUESTS
@pytest.mark.parametrize("name", sorted(FLAGS))
def test_flags_of_the_cases_own_count_beside_ours(name: str, arch: Arch, case: Case) -> None:
    config, expected = FLAGS[name]
    files = {"rust/Cargo.toml": PACKAGE.format("flags"), "rust/src/main.rs": PRINTS_CFG, "rust/.cargo/config.toml": config}
    overlay = case.build(files, arch)
    assert run_program(overlay / "usr/bin/flags", arch) == f"{expected}\n"
    assert all(elf.interpreter is None for elf in elf_files(Tree(overlay)))  # ours are there, too


def test_flags_that_a_script_writes_count(case: Case) -> None:
    script = "mkdir .cargo\nprintf '[build]\\nrustflags = \"--cfg fast\"\\n' >.cargo/config.toml\n"
    files = {"rust/Cargo.toml": PACKAGE.format("flags"), "rust/src/main.rs": PRINTS_CFG, "rust/prebuild.sh": script}
    assert run_program(case.build(files) / "usr/bin/flags", Arch.X86_64) == "true false false\n"


@pytest.mark.parametrize("arch", list(Arch))
def test_a_profile_that_aborts(arch: Arch, case: Case) -> None:
    files = {
        "rust/Cargo.toml": PACKAGE.format("aborts") + '[profile.release]\npanic = "abort"\noverflow-checks = true\n',
        "rust/src/main.rs": """\
            fn main() {
                println!("{}", cfg!(panic = "abort"));
                if std::env::args().count() > 1 {
                    let _ = std::panic::catch_unwind(|| panic!("gone"));
                    println!("caught");
                }
            }
            """,
    }
    program = case.build(files, arch) / "usr/bin/aborts"
    assert run_program(program, arch) == "true\n"
    done = process.run([f"qemu-{arch}", str(program), "panic"], timeout=60, check=False)
    assert done.returncode != 0
    assert b"caught" not in done.stdout


@GUESTS
def test_two_programs_of_one_name(arch: Arch, case: Case) -> None:
    files = {
        "rust/Cargo.toml": '[workspace]\nmembers = ["one", "two"]\nresolver = "2"\n',
        "rust/one/Cargo.toml": PACKAGE.format("one"),
        "rust/one/src/bin/same.rs": "fn main() {}\n",
        "rust/two/Cargo.toml": PACKAGE.format("two"),
        "rust/two/src/bin/same.rs": "fn main() { println!(); }\n",
    }
    with pytest.raises(BuildError) as caught:
        case.build(files, arch)
    paths = "rust/one/src/bin/same.rs and rust/two/src/bin/same.rs"
    assert caught.value.what == f"two programs would be installed under one name: same ({paths})"
    assert "[[bin]] name" in caught.value.hint


@GUESTS
def test_procedural_macros_run_on_the_builder(arch: Arch, case: Case) -> None:
    files = {
        "rust/Cargo.toml": PACKAGE.format("user")
        + '[dependencies]\nmacros = { path = "macros" }\n[workspace]\nmembers = ["macros"]\n',
        "rust/src/main.rs": 'fn main() { println!("{}", macros::answer!()); }\n',
        "rust/macros/Cargo.toml": PACKAGE.format("macros") + "[lib]\nproc-macro = true\n",
        "rust/macros/src/lib.rs": """\
            use proc_macro::TokenStream;
            #[proc_macro]
            pub fn answer(_: TokenStream) -> TokenStream { "42".parse().unwrap() }
            """,
    }
    assert run_program(case.build(files, arch) / "usr/bin/user", arch) == "42\n"


SYS = {
    "rust/Cargo.toml": PACKAGE.format("user") + '[dependencies]\ntally-sys = { path = "tally-sys" }\n',
    "rust/src/main.rs": 'fn main() { println!("{} {}", unsafe { tally_sys::tally(40) }, tally_sys::LARGEST); }\n',
    "rust/tally-sys/Cargo.toml": PACKAGE.format("tally-sys") + 'links = "tally"\nbuild = "build.rs"\n',
    "rust/tally-sys/src/lib.rs": """\
        #[link(name = "extra", kind = "static")]
        extern "C" { pub fn tally(count: i32) -> i32; }
        include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
        """,
    "rust/tally-sys/extra.c": """\
        #include <tally.h>
        int tally(int count) { return count + STEP * __builtin_popcountl(count) - 2; }
        """,
    # `__builtin_popcountl` is a function of libgcc where there is no instruction for it.
    # What the crates cc, pkg-config and bindgen do: the compiler of CC_<target>, pkg-config and its variables, libclang.
    "rust/tally-sys/build.rs": r"""
        use std::{env, fs, process::Command};
        fn run(command: &mut Command) -> String {
            let done = command.output().unwrap();
            assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
            String::from_utf8(done.stdout).unwrap()
        }
        fn main() {
            let target = env::var("TARGET").unwrap().replace('-', "_");
            let out = env::var("OUT_DIR").unwrap();
            let flags = run(Command::new("pkg-config").args(["--cflags", "tally"]));
            let object = format!("{out}/extra.o");
            let compiler = env::var(format!("CC_{target}")).unwrap();
            run(Command::new(compiler).args(flags.split_whitespace()).args(["-c", "extra.c", "-o", &object]));
            run(Command::new(env::var(format!("AR_{target}")).unwrap()).args(["crs", &format!("{out}/libextra.a"), &object]));
            println!("cargo::rustc-link-search=native={out}");
            let clang = env::var(format!("BINDGEN_EXTRA_CLANG_ARGS_{target}")).unwrap();
            let triple = env::var("TARGET").unwrap().replace("riscv64gc", "riscv64"); // as bindgen has it
            fs::write(format!("{out}/all.h"), "#include <tally.h>\n#include <limits.h>\nLARGEST_IS INT_MAX\n").unwrap();
            let said = run(Command::new("clang").arg(format!("--target={triple}")).args(clang.split_whitespace())
                .args(flags.split_whitespace()).args(["-E", "-P", &format!("{out}/all.h")]));
            let largest = said.split("LARGEST_IS").nth(1).unwrap().trim();
            let number = match largest.strip_prefix("0x") {
                Some(hex) => i64::from_str_radix(hex, 16).unwrap(),
                None => largest.parse().unwrap(),
            };
            fs::write(format!("{out}/bindings.rs"), format!("pub const LARGEST: i64 = {number};")).unwrap();
            let found = fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path().join("lib"))
                .filter(|path| path.to_string_lossy().contains("/llvm-"))
                .flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten())
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("libclang-1"))
                .any(|entry| entry.path().exists());
            assert!(found, "bindgen would not find libclang");
        }
        """,
}


@GUESTS
def test_crates_around_c_take_headers_and_libraries_of_the_staging_root(arch: Arch, case: Case) -> None:
    """As packages would leave them there."""
    staging = case.root / "staging/usr"
    (staging / "include/tally").mkdir(parents=True)
    (staging / "lib/pkgconfig").mkdir(parents=True)
    (staging / "include/tally/tally.h").write_text("#define STEP 2\n")
    (staging / "lib/pkgconfig/tally.pc").write_text("Name: tally\nDescription: x\nVersion: 1\nCflags: -I/usr/include/tally\n")
    assert run_program(case.build(SYS, arch) / "usr/bin/user", arch) == "42 2147483647\n"


def test_a_library_that_is_only_a_shared_one(case: Case) -> None:
    """A package without the archive, as `-dev` packages are: the hint says which file is missing."""
    (case.root / "staging/usr/lib").mkdir(parents=True)
    (case.root / "staging/usr/lib/libtally.so").touch()
    script = 'fn main() { println!("cargo::rustc-link-lib=tally\\ncargo::rustc-link-search=native=/qcase/staging/usr/lib"); }\n'
    main = 'extern "C" { fn tally(); }\nfn main() { unsafe { tally() } }\n'
    files = {"rust/Cargo.toml": PACKAGE.format("user"), "rust/build.rs": script, "rust/src/main.rs": main}
    with pytest.raises(BuildError) as caught:
        case.build(files)
    assert "with a libtally.a" in caught.value.hint


CASE = "suite/normal/rout"
OUT = "../../../../"
WIRE = {"crates/wire/Cargo.toml": PACKAGE.format("wire"), "crates/wire/src/lib.rs": "pub fn id() -> i32 { 11 }\n"}
PRINTS = {f"{CASE}/rust/src/main.rs": 'fn main() { println!("{}", wire::id()); }\n'}
LOCK = """\
version = 4

[[package]]
name = "rout"
version = "0.3.0"
dependencies = [
 "wire",
]

[[package]]
name = "unused"
version = "0.1.0"
dependencies = [
 "nobodys",
]

[[package]]
name = "nobodys"
version = "1.0.0"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "1111111111111111111111111111111111111111111111111111111111111111"

[[package]]
name = "wire"
version = "0.1.0"
"""


@GUESTS
def test_a_crate_beside_the_case(arch: Arch, case: Case) -> None:
    manifest = PACKAGE.format("rout") + f'[dependencies]\nwire = {{ path = "{OUT}crates/wire" }}\n'
    overlay = case.build_within({**WIRE, **PRINTS, f"{CASE}/rust/Cargo.toml": manifest}, CASE, arch)
    assert run_program(overlay / "usr/bin/rout", arch) == "11\n"
    assert b"/qcase/" not in (overlay / "usr/bin/rout").read_bytes()


@GUESTS
def test_a_member_of_a_workspace_above_the_case(arch: Arch, case: Case) -> None:
    """Its version, profile and dependencies stand there. Other members, and what they need, are neither there nor fetched."""
    case.offline = True
    files = {
        **WIRE,
        "Cargo.toml": """\
            [workspace]
            resolver = "2"
            members = ["crates/*", "suite/*/*/rust"]
            [workspace.package]
            version = "0.3.0"
            [workspace.dependencies]
            wire = { path = "crates/wire" }
            [profile.release]
            overflow-checks = true
            """,
        "Cargo.lock": LOCK,
        "crates/unused/Cargo.toml": PACKAGE.format("unused") + '[dependencies]\nnobodys = "1"\n',
        "crates/unused/src/lib.rs": "",
        f"{CASE}/rust/Cargo.toml": """\
            [package]
            name = "rout"
            version.workspace = true
            edition = "2021"
            [dependencies]
            wire.workspace = true
            """,
        f"{CASE}/rust/src/main.rs": """\
            fn main() {
                let sum = std::panic::catch_unwind(|| std::hint::black_box(255u8) + 1);
                println!("{} {} {}", wire::id(), env!("CARGO_PKG_VERSION"), sum.is_err());
            }
            """,
    }
    overlay = case.build_within(files, CASE, arch)
    assert sorted(path.name for path in (overlay / "usr/bin").iterdir()) == ["rout"]
    assert run_program(overlay / "usr/bin/rout", arch) == "11 0.3.0 true\n"
    assert case.warnings == []


@GUESTS
def test_files_beside_the_case_that_its_sources_name(arch: Arch, case: Case) -> None:
    text = f'fn main() {{ print!("{{}}", include_str!("{OUT}../data/a.txt")); }}\n'
    files = {"data/a.txt": "from beside\n", f"{CASE}/rust/Cargo.toml": PACKAGE.format("rout"), f"{CASE}/rust/src/main.rs": text}
    assert run_program(case.build_within(files, CASE, arch) / "usr/bin/rout", arch) == "from beside\n"


def test_what_is_missing_is_told_in_the_workspaces_own_paths(case: Case) -> None:
    manifest = PACKAGE.format("rout") + f'[dependencies]\nwire = {{ path = "{OUT}crates/wire" }}\n'
    script = {f"{CASE}/rust/build.rs": f'fn main() {{ std::fs::read("{OUT}data/a.txt").unwrap(); }}\n'}
    for files in ({}, {**WIRE, **script}):
        with pytest.raises(BuildError) as caught:
            case.build_within({**files, **PRINTS, f"{CASE}/rust/Cargo.toml": manifest}, CASE)
        assert "/qcase/" not in caught.value.what
        assert "/qcase/src" not in caught.value.log
        assert "/qcase/whole" not in caught.value.log
        assert "a relative link in the case" in caught.value.hint


TOOLCHAINS = {
    "stable": ('[toolchain]\nchannel = "stable"\ntargets = ["x86_64-unknown-linux-musl"]\n', ""),
    "1.85": ('[toolchain]\nchannel = "1.85"\n', ""),
    "components": ('[toolchain]\ncomponents = ["clippy"]\n', ""),
    "nightly": (
        '# why\n[toolchain]\nchannel = "nightly-2025-01-01"\n',
        "rust/rust-toolchain.toml:3 asks for Rust nightly-2025-01-01, and the toolchain image has 1.85.1",
    ),
    "1.8": ('[toolchain]\nchannel = "1.8"\n', "rust/rust-toolchain.toml:2 asks for Rust 1.8, and the toolchain image has 1.85.1"),
    "path": (
        '[toolchain]\npath = "/opt/mine"\n',
        "rust/rust-toolchain.toml:1 asks for a toolchain of this machine, and a build sees only its image",
    ),
    "broken": ("[toolchain\n", "rust/rust-toolchain.toml cannot be read: "),
}


@GUESTS
@pytest.mark.parametrize("name", sorted(TOOLCHAINS))
def test_a_toolchain_file_is_understood_or_refused(name: str, arch: Arch, case: Case) -> None:
    text, what = TOOLCHAINS[name]
    files = {"rust/Cargo.toml": PACKAGE.format("user"), "rust/src/main.rs": "fn main() {}\n", "rust/rust-toolchain.toml": text}
    if not what:
        assert (case.build(files, arch) / "usr/bin/user").is_file()
        return
    with pytest.raises(BuildError) as caught:
        case.build(files, arch)
    assert caught.value.what.startswith(what)
    assert caught.value.where == "normal/x"


TESTED = {
    "rust/Cargo.toml": PACKAGE.format("tested"),
    "rust/src/lib.rs": """\
        pub fn add(left: u8, right: u8) -> u8 { left + right }
        #[cfg(test)]
        mod tests {
            #[test]
            fn adds() { assert_eq!(super::add(1, 2), 3); }
            #[test]
            #[should_panic]
            fn does_not_wrap() { super::add(std::hint::black_box(255), 1); }
        }
        """,
    "rust/src/main.rs": "fn main() {}\n#[test]\nfn of_the_program() {}\n",
    "rust/tests/whole.rs": "#[test]\nfn adds() { assert_eq!(tested::add(2, 2), 5); }\n",
}


@GUESTS
def test_the_tests_of_a_crate_as_programs(arch: Arch, case: Case) -> None:
    case.cargo = "test"
    programs = case.build(TESTED, arch) / "usr/bin"
    assert sorted(path.name for path in programs.iterdir()) == ["tested", "tested-bin-tests", "tested-lib-tests", "whole"]
    said = run_program(programs / "tested-lib-tests", arch)
    assert "test result: ok. 2 passed" in said  # also the overflow: as `cargo test` builds them
    assert "of_the_program ... ok" in run_program(programs / "tested-bin-tests", arch)
    assert process.run([f"qemu-{arch}", str(programs / "whole")], timeout=60, check=False).returncode == 101


def test_tests_of_a_workspace_with_a_procedural_macro_and_a_library_of_two_kinds(case: Case) -> None:
    """The macro's tests are for the builder. The library is also one for C."""
    case.cargo = "test"
    files = {
        "rust/Cargo.toml": '[workspace]\nmembers = ["macros", "both"]\nresolver = "2"\n',
        "rust/macros/Cargo.toml": PACKAGE.format("macros") + "[lib]\nproc-macro = true\n",
        "rust/macros/src/lib.rs": "#[test]\nfn here() {}\n",
        "rust/both/Cargo.toml": PACKAGE.format("both") + '[lib]\ncrate-type = ["cdylib", "rlib"]\n',
        "rust/both/src/lib.rs": "#[test]\nfn there() {}\n",
    }
    assert sorted(path.name for path in (case.build(files) / "usr/bin").iterdir()) == ["both-lib-tests"]
    (warning,) = [said for said in case.warnings if "procedural" in said]
    assert warning.endswith("and are not installed: macros")


def test_tests_of_libraries_for_c_beside_programs_that_abort(case: Case) -> None:
    """Each library is built twice, to unwind and to abort: the later file took the place of the other one, whichever it was."""
    case.cargo = "test"
    names = [f"both{number}" for number in range(6)]
    members = ", ".join(f'"{name}"' for name in names)
    files = {"rust/Cargo.toml": f'[workspace]\nmembers = [{members}]\nresolver = "2"\n[profile.dev]\npanic = "abort"\n'}
    for name in names:
        files |= {
            f"rust/{name}/Cargo.toml": PACKAGE.format(name) + '[lib]\ncrate-type = ["cdylib", "rlib"]\n',
            f"rust/{name}/src/lib.rs": "pub fn two() -> i32 { 2 }\n",
            f"rust/{name}/src/main.rs": f'fn main() {{ println!("{{}} {{}}", {name}::two(), cfg!(panic = "abort")); }}\n',
            f"rust/{name}/tests/{name}-it.rs": f"#[test]\nfn it() {{ assert_eq!({name}::two(), 2); }}\n",
        }
    programs = case.build(files) / "usr/bin"
    assert [run_program(programs / name, Arch.X86_64) for name in names] == ["2 true\n"] * len(names)
    assert "1 passed" in run_program(programs / "both0-it", Arch.X86_64)


def test_options_of_cargo(case: Case) -> None:
    """Features, and a member that is not for the guest."""
    case.options = {"cargo_options": ("--features", "fast", "--package=user", "--config", "profile.release.overflow-checks=true")}
    body = """\
        fn main() {
            let sum = std::panic::catch_unwind(|| std::hint::black_box(255u8) + 1);
            println!("{} {}", cfg!(feature = "fast"), sum.is_err());
        }
        """
    files = {
        "rust/Cargo.toml": PACKAGE.format("user") + '[features]\nfast = []\n[workspace]\nmembers = ["bare"]\n',
        "rust/src/main.rs": body,
        "rust/bare/Cargo.toml": PACKAGE.format("bare"),
        "rust/bare/src/main.rs": "#![no_std]\n#![no_main]\n",
    }
    assert run_program(case.build(files) / "usr/bin/user", Arch.X86_64) == "true true\n"
    case.options = {}
    with pytest.raises(BuildError):
        case.build(files)
