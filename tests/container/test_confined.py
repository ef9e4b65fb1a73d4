"""What a case's own scripts and programs can do while it is built: nothing outside their folders, and not for ever.

The limits themselves are tested on single steps, in `test_containers.py`; here, that builds have them, and what is said then.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.errors import BuildError
from qcase.pipelines import c, prebuild, rust
from tests.container.builds import Case
from tests.vm.workspaces import c_program, says

pytestmark = pytest.mark.container

C = c_program(says("hello"))
RUST = {
    "rust/Cargo.toml": '[package]\nname = "prog"\nversion = "0.1.0"\nedition = "2021"\n',
    "rust/src/main.rs": "fn main() {}\n",
}
PIDS = 40

CONFINED = """
set +e
failed=
for place in / /etc /usr /opt/qcase /qcase "$QCASE_CASE_DIR/.."; do
    touch "$place/planted" 2>/dev/null && failed="$failed wrote:$place"
done
[ -e /dev/mem ] && failed="$failed memory"
[ "$(ls /sys/class/net 2>/dev/null | grep -v '^lo$')" ] && failed="$failed network"
grep -q '^CapEff:.*[1-9a-f]' /proc/self/status && failed="$failed capabilities"
grep -q '^NoNewPrivs:.*1' /proc/self/status || failed="$failed privileges"
echo "confined:$failed" >"$QCASE_CASE_OVERLAY_DIR/result"
"""


def test_a_script_sees_and_writes_nothing_outside(case: Case) -> None:
    overlay = case.build({**C, "c/prebuild.sh": CONFINED}, made=c.build)
    assert (overlay / "result").read_text() == "confined:\n"


def test_a_build_script_of_a_crate_is_confined_likewise(case: Case) -> None:
    """Cargo's build scripts and macros run on the machine that builds: they are programs of the case, like any other."""
    program = """\
        fn main() {
            for place in ["/", "/etc", "/usr", "/qcase", "/qcase/staging"] {
                assert!(std::fs::write(format!("{place}/planted"), "x").is_err(), "{place}");
            }
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            assert!(status.contains("CapEff:\\t0000000000000000"), "{status}");
            for entry in std::fs::read_dir("/sys/class/net").unwrap() {
                assert_eq!(entry.unwrap().file_name(), "lo");
            }
        }
        """
    overlay = case.build({**RUST, "rust/build.rs": program})
    assert (overlay / "usr/bin/prog").is_file()


@pytest.mark.parametrize(
    ("limit", "value", "script", "said"),
    [
        ("STEP_TIMEOUT", 4.0, "while :; do :; done", "prebuild.sh took longer than 4 s and was stopped"),
        ("STEP_MEMORY", 64 << 20, "tail /dev/zero", "of memory that it may use"),
        ("STEP_PIDS", PIDS, "i=0; while [ $i -lt 99 ]; do sleep 60 & i=$((i + 1)); done", f"more than the {PIDS} processes"),
        ("STEP_PIDS", PIDS, "bomb() { bomb | bomb; }; bomb", f"{PIDS} processes"),
    ],
    ids=["an endless loop", "memory", "processes", "a fork bomb"],
)
def test_a_limit_ends_in_a_build_error_that_names_it(
    limit: str, value: float, script: str, said: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prebuild, limit, value)
    with pytest.raises(BuildError) as caught:
        case.build({**C, "c/prebuild.sh": script}, made=c.build)
    assert said in caught.value.what


def test_the_time_limit_of_a_compilation(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rust, "STEP_TIMEOUT", 15.0)
    with pytest.raises(BuildError) as caught:
        case.build({**RUST, "rust/build.rs": "fn main() { loop {} }\n"})
    assert caught.value.what == "cargo build took longer than 15 s and was stopped"


def test_links_planted_in_an_overlay_lead_nowhere(case: Case, tmp_path: Path) -> None:
    """What a build installs as links stays links; where qcase itself puts something through one, it refuses."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret\n")
    plant = f'ln -s {outside} "$QCASE_CASE_OVERLAY_DIR/data"\nln -s {outside}/secret "$QCASE_CASE_OVERLAY_DIR/usr"\n'
    files = {**C, "c/CMakeLists.txt": C["c/CMakeLists.txt"].replace("usr/bin", "bin")}
    overlay = case.build({**files, "c/prebuild.sh": plant}, made=c.build)
    assert (overlay / "data").readlink() == outside
    assert (overlay / "usr").readlink() == outside / "secret"

    loader = 'mkdir "$QCASE_CASE_OVERLAY_DIR/lib"\ntouch "$QCASE_CASE_OVERLAY_DIR/lib/ld-musl-x86_64.so.1"\n'
    plant = f'{loader}ln -s {outside} "$QCASE_CASE_OVERLAY_DIR/etc"\n'
    with pytest.raises(BuildError, match="etc in the overlay is a symbolic link"):
        case.build({**files, "c/prebuild.sh": plant}, made=c.build)
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret\n"
