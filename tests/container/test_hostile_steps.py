"""What a case's script leaves on purpose where qcase looks, tried in a real container: a build-error with its place, at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qcase.errors import BuildError
from qcase.host.trees import Tree
from qcase.pipelines import c
from qcase.store import listings
from tests.container.builds import Case
from tests.hostile import SECRET, Canary, leaks
from tests.vm.workspaces import c_program, says

pytestmark = [pytest.mark.container, pytest.mark.timeout(300)]

C = c_program(says("hello"))
REQUESTS = "/qcase/packages/requests"
WAIT = f"i=0; while [ ! -f {REQUESTS}/r.answer ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done; "
LOADER = 'cd "$QCASE_CASE_OVERLAY_DIR"; mkdir lib etc; touch lib/ld-musl-x86_64.so.1\n'
PATHS = "etc/ld-musl-x86_64.path"

# What the script does, and what is said of it.
PLANTS = {
    "a request that is a link to the environment": (
        f'ln -s /proc/self/environ {REQUESTS}/r.ask; {WAIT} cat {REQUESTS}/r.answer >"$QCASE_CASE_OVERLAY_DIR/leak"',
        "r.ask in the request folder is a symbolic link",
    ),
    "a request that is a link to a file of the host": (
        f'ln -s HOME/.ssh/id_rsa {REQUESTS}/r.ask; {WAIT} cat {REQUESTS}/r.answer >"$QCASE_CASE_OVERLAY_DIR/leak"',
        "r.ask in the request folder is a symbolic link",
    ),
    "a request that is a fifo": (f"mkfifo {REQUESTS}/r.ask; {WAIT}", "r.ask in the request folder is a fifo"),
    "a request without an end": (f"truncate -s 1T {REQUESTS}/r.ask; {WAIT}", "r.ask in the request folder has more than"),
    "an answer that is a folder": (
        f'mkdir {REQUESTS}/r.answer; printf "info\\n" >{REQUESTS}/r.ask; sleep 1',
        "r.answer in the request folder is a folder",
    ),
    "requests without number": (
        f"cd {REQUESTS}; seq 1 3000 | while read -r n; do : >$n; done; sleep 1",
        "the request folder has more than",
    ),
    "a loader's paths that are a link": (
        f"{LOADER}ln -s HOME/.bashrc {PATHS}",
        "etc/ld-musl-x86_64.path in the overlay is a symbolic",
    ),
    "a loader's paths that are a fifo": (f"{LOADER}mkfifo {PATHS}", "etc/ld-musl-x86_64.path in the overlay is a fifo"),
    "a working folder that is a link": (
        'cd /; mv "$QCASE_CASE_DIR/c" "$QCASE_CASE_DIR/d"; ln -s /proc/self/fd/7 "$QCASE_CASE_DIR/c"',
        "c in the copy of the sources has to be a folder",
    ),
    "a fifo in the overlay": ('mkfifo "$QCASE_CASE_OVERLAY_DIR/pipe"', "pipe in the overlay is a fifo"),
    "folders without an end": (
        'cd "$QCASE_CASE_OVERLAY_DIR"; i=0; while [ $i -lt 400 ]; do mkdir d; cd d; i=$((i+1)); done',
        "the overlay has folders in more than",
    ),
}


@pytest.mark.parametrize("what", PLANTS)
def test_what_a_script_plants_is_a_build_error_with_its_place(what: str, case: Case, tmp_path: Path) -> None:
    canary = Canary(tmp_path / "home")
    script, said = PLANTS[what]
    began = time.monotonic()

    def build_and_store() -> None:
        overlay = case.build({**C, "c/prebuild.sh": script.replace("HOME", str(canary.home)) + "\n"}, made=c.build)
        listings.overlay_listing(Tree(overlay, what="the overlay"))

    with pytest.raises(BuildError) as caught:
        build_and_store()
    assert said in caught.value.what
    assert SECRET not in f"{caught.value} {caught.value.log}"
    assert time.monotonic() - began < 60
    canary.check()
    assert leaks(case.root) == []


def test_a_huge_sparse_file_of_an_overlay_is_taken_as_it_is(case: Case) -> None:
    """It is no fault, and costs no more than its data."""
    script = 'truncate -s 4T "$QCASE_CASE_OVERLAY_DIR/sparse"; printf x >>"$QCASE_CASE_OVERLAY_DIR/sparse"\n'
    overlay = case.build({**C, "c/prebuild.sh": script}, made=c.build)
    began = time.monotonic()
    rows = listings.overlay_listing(Tree(overlay))
    assert time.monotonic() - began < 60
    assert [row[1:3] for row in rows if row[0] == "sparse"] == [["file", "0644"]]
