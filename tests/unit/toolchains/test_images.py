"""What of the image room needs no engine: identities, records, the host's mirrors, what a build says."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from qcase.config import image_lock
from qcase.errors import InfraError, UsageError
from qcase.events import Event, Progress
from qcase.guests import debian_archive
from qcase.guests.debian_archive import Mirrors, Source
from qcase.guests.guest import Guest
from qcase.store.store import Store
from qcase.toolchains import base, foreign, images
from qcase.toolchains import recipes as recipes_module
from qcase.toolchains.build_log import BuildLog, Heartbeat
from qcase.toolchains.recipes import GUEST_ARCH, BaseDefinition, base_definition, recipe_digest, recipes_dir


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes" / "tiny"
    folder.mkdir(parents=True)
    (folder / "Containerfile").write_text("ARG BASE\nFROM ${BASE}\n")
    (folder / "build.sh").write_text("#!/bin/sh\n")
    return tmp_path / "recipes"


# --- identities ---------------------------------------------------------------------------------------------------------


def test_the_recipes_of_this_checkout_are_found() -> None:
    assert base_definition().suite == "trixie"
    assert (recipes_dir() / "base.toml").is_file()


def test_a_recipe_is_its_paths_bytes_and_executable_bits(recipes: Path) -> None:
    script = recipes / "tiny" / "build.sh"
    seen = [recipe_digest("tiny", recipes)]
    script.touch()
    assert recipe_digest("tiny", recipes) == seen[0]
    script.chmod(0o755)
    seen.append(recipe_digest("tiny", recipes))
    script.write_text("#!/bin/sh\ntrue\n")
    seen.append(recipe_digest("tiny", recipes))
    script.rename(recipes / "tiny" / "make.sh")
    seen.append(recipe_digest("tiny", recipes))
    (recipes / "tiny" / "link").symlink_to("make.sh")
    seen.append(recipe_digest("tiny", recipes))
    assert len(set(seen)) == 5


def test_the_group_may_write_in_one_checkout_and_not_in_another(recipes: Path) -> None:
    before = recipe_digest("tiny", recipes)
    (recipes / "tiny" / "build.sh").chmod(0o664)
    assert recipe_digest("tiny", recipes) == before


def test_an_unknown_image_names_the_known(recipes: Path) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_digest("tny", recipes)
    assert caught.value.hint == "there are: tiny"


def test_an_identity_is_recipe_and_packages_in_any_order() -> None:
    one = image_lock.identity("recipe", ["gcc amd64 14.2", "make amd64 4.4"])
    assert one == image_lock.identity("recipe", ["make amd64 4.4", "gcc amd64 14.2"])
    assert one != image_lock.identity("recipe", ["gcc amd64 14.3", "make amd64 4.4"])
    assert one != image_lock.identity("other", ["gcc amd64 14.2", "make amd64 4.4"])


def record(cache: Path, **parts: object) -> None:
    (cache / "images").mkdir(parents=True, exist_ok=True)
    (cache / "images" / "tiny.json").write_text(json.dumps(parts))


def test_the_identity_is_known_without_an_engine(recipes: Path, tmp_path: Path) -> None:
    assert images.known_identity("tiny", tmp_path, recipes) is None
    recipe = recipe_digest("tiny", recipes)
    record(tmp_path, format=image_lock.LOCK_FORMAT, recipe=recipe, image="sha256:1", identity="abc")
    assert images.known_identity("tiny", tmp_path, recipes) == "abc"
    (recipes / "tiny" / "build.sh").write_text("changed")
    assert images.known_identity("tiny", tmp_path, recipes) is None


def test_a_record_of_another_format_or_half_of_one_is_none(recipes: Path, tmp_path: Path) -> None:
    recipe = recipe_digest("tiny", recipes)
    record(tmp_path, format=image_lock.LOCK_FORMAT + 1, recipe=recipe, image="sha256:1", identity="abc")
    assert images.known_identity("tiny", tmp_path, recipes) is None
    (tmp_path / "images" / "tiny.json").write_text('{"format": 1, "rec')
    assert images.known_identity("tiny", tmp_path, recipes) is None


@pytest.mark.parametrize("reference", ["debian", "debian:trixie", "debian@sha256:12", "@sha256:" + "0" * 64])
def test_an_image_of_others_without_a_digest_is_refused(reference: str) -> None:
    with pytest.raises(UsageError) as caught:
        foreign.foreign_identity(reference)
    assert reference in str(caught.value)


def test_an_image_of_others_is_its_digest() -> None:
    one = foreign.foreign_identity("registry.example/c@sha256:" + "a" * 64)
    assert one == foreign.foreign_identity("mirror.example:5000/c@sha256:" + "a" * 64)
    assert one != foreign.foreign_identity("registry.example/c@sha256:" + "b" * 64)


# --- the host's mirrors -------------------------------------------------------------------------------------------------

DEB822 = """\
# comment
Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


def apt(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "apt"
    (folder / "sources.list.d").mkdir(parents=True)
    for name, text in files.items():
        stem, _, ending = name.rpartition("_")
        path = folder / "sources.list" if name == "sources" else folder / "sources.list.d" / f"{stem}.{ending}"
        path.write_text(text)
    return folder


def test_mirrors_from_stanzas(tmp_path: Path) -> None:
    mirrors = debian_archive.host_mirrors(apt(tmp_path, debian_sources=DEB822), {})
    assert mirrors.main == Source(
        "http://mirror.example/debian", "bookworm", ("main", "contrib"), "/usr/share/keyrings/debian-archive-keyring.gpg"
    )
    assert mirrors.security is not None
    assert mirrors.security.uri == "http://mirror.example/debian-security"


def test_mirrors_from_lines(tmp_path: Path) -> None:
    text = """
    # deb http://old.example/debian stretch main
    deb-src http://source.example/debian bookworm main
    deb cdrom:[Debian]/ bookworm main
    deb [ arch=amd64 signed-by=/etc/apt/keyrings/corp.gpg ] https://corp.example/debian bookworm main # ours
    deb https://corp.example/debian-security bookworm-security main
    """
    mirrors = debian_archive.host_mirrors(apt(tmp_path, sources=text), {})
    assert mirrors.main == Source("https://corp.example/debian", "bookworm", ("main",), "/etc/apt/keyrings/corp.gpg")
    assert mirrors.security is not None
    assert mirrors.security.suite == "bookworm-security"


def test_other_archives_are_passed_over(tmp_path: Path) -> None:
    folder = apt(
        tmp_path,
        a_list="deb https://vendor.example bookworm main\ndeb https://cloud.example/apt cloud-bookworm main\n",
        b_sources="Types: deb\nURIs: https://node.example/x\nSuites: nodistro\nComponents: main\n",
        c_sources=DEB822.replace("Types:", "Enabled: no\nTypes:"),
        d_sources=DEB822.replace("mirror.example", "second.example"),
    )
    mirrors = debian_archive.host_mirrors(folder, {})
    assert mirrors.main is not None
    assert mirrors.main.uri == "http://second.example/debian"


def test_a_mirror_with_an_unusual_path_is_known_by_its_updates(tmp_path: Path) -> None:
    text = "deb https://proxy.example/apt/remote bookworm main\ndeb https://proxy.example/apt/remote bookworm-updates main\n"
    mirrors = debian_archive.host_mirrors(apt(tmp_path, sources=text), {})
    assert mirrors.main is not None
    assert mirrors.main.uri == "https://proxy.example/apt/remote"


def test_a_host_without_debian_leaves_it_to_mmdebstrap(tmp_path: Path) -> None:
    mirrors = debian_archive.host_mirrors(tmp_path / "none", {})
    assert mirrors == Mirrors()
    argv = base.mmdebstrap_arguments(BaseDefinition("trixie", "minbase"), mirrors, Path("/x/base.tar"))
    assert argv == ["mmdebstrap", "--variant=minbase", "--format=tar", "trixie", "/x/base.tar"]


def test_the_environment_names_the_mirror(tmp_path: Path) -> None:
    environ = {"QCASE_DEBIAN_MIRROR": "http://a.example/debian/ http://a.example/security"}
    mirrors = debian_archive.host_mirrors(apt(tmp_path, debian_sources=DEB822), environ)
    argv = base.mmdebstrap_arguments(BaseDefinition("trixie", "minbase"), mirrors, Path("/x/base.tar"))
    assert argv[3:] == [
        "trixie",
        "/x/base.tar",
        "deb http://a.example/debian trixie main",
        "deb http://a.example/debian trixie-updates main",
        "deb http://a.example/security trixie-security main",
    ]


def test_a_keyring_of_the_host_goes_into_the_base() -> None:
    mirrors = Mirrors(Source("http://a.example/debian", "bookworm", ("main",), "/etc/apt/my keys/corp.gpg"))
    argv = base.mmdebstrap_arguments(BaseDefinition("trixie", "minbase"), mirrors, Path("/x/base.tar"))
    assert argv[3:5] == [
        "--setup-hook=mkdir -p \"$1\"'/etc/apt/my keys'",
        "--setup-hook=copy-in '/etc/apt/my keys/corp.gpg' '/etc/apt/my keys'",
    ]
    assert len([part for part in argv if part.startswith("--setup-hook")]) == 2
    assert "deb [signed-by=/etc/apt/my keys/corp.gpg] http://a.example/debian trixie main" in argv


def test_a_key_inside_a_stanza_is_passed_over() -> None:
    text = DEB822 + "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEY\n -----END PGP PUBLIC KEY BLOCK-----\n"
    assert [source.signed_by for source in debian_archive.parse_deb822(text)][-1] == ""


def test_packages_of_an_archive(tmp_path: Path) -> None:
    status = (
        b"Package: b\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2\nDescription: x\n long\n .\n text\n\n"
        b"Package: a\nStatus: install ok installed\nArchitecture: all\nVersion: 1:1-1\n\n"
        b"Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n"
    )
    path = tmp_path / "base.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("./var/lib/dpkg/status")
        member.size = len(status)
        tar.addfile(member, io.BytesIO(status))
    assert base.packages_of_archive(path) == ["a all 1:1-1", "b amd64 2"]


def test_an_archive_without_packages_is_an_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "base.tar", "w"):
        pass
    with pytest.raises(InfraError, match="no list of packages"):
        base.packages_of_archive(tmp_path / "base.tar")


# --- what a build says --------------------------------------------------------------------------------------------------


def test_steps_become_progress_and_the_last_lines_stay(tmp_path: Path) -> None:
    heard: list[Event] = []
    with Heartbeat("image tiny", heard.append) as heart, BuildLog(tmp_path / "tiny.log", heart) as said:
        said.take({"stream": "Step 1/2 : FROM ${BASE}"})
        said.take({"stream": "\n"})
        said.take({"stream": " ---> 0123\n"})
        said.take({"stream": "Step 2/2 : RUN make\n"})
        said.take({"stream": "".join(f"line {number}\n" for number in range(40))})
        said.take({"aux": {"ID": "sha256:1"}})
        said.take({"errorDetail": {"code": 2}, "error": "The command returned a non-zero code: 2"})
    assert heard == [Progress("image tiny: step 1/2: FROM ${BASE}"), Progress("image tiny: step 2/2: RUN make")]
    assert said.step == "step 2/2: RUN make"
    assert list(said.last) == [f"line {number}" for number in range(25, 40)]
    assert said.error == "The command returned a non-zero code: 2"
    assert "line 0\n" in (tmp_path / "tiny.log").read_text()


def test_the_red_of_standard_error_is_taken_out(tmp_path: Path) -> None:
    with Heartbeat("image tiny", None) as heart, BuildLog(tmp_path / "tiny.log", heart) as said:
        said.take({"stream": "\x1b[91m   Compiling core v0.0.0\x1b[0m\x1b[91m\n\x1b[0mdone\n"})
    assert list(said.last) == ["   Compiling core v0.0.0", "done"]
    assert (tmp_path / "tiny.log").read_text() == "   Compiling core v0.0.0\ndone\n"


def test_a_silent_build_shows_that_it_lives() -> None:
    beaten = threading.Event()
    heard: list[str] = []

    def emit(event: Event) -> None:
        assert isinstance(event, Progress)
        heard.append(event.message)
        if "at: compiling" in event.message:
            beaten.set()

    with Heartbeat("image tiny", emit, interval=0.01) as heart:
        heart.hear("compiling")
        assert beaten.wait(30)
    assert not any(thread.name == "heart of image tiny" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("W: Failed to fetch http://x  Temporary failure resolving 'x'", "is there a network"),
        ("E: Failed to fetch http://x/y.deb  404  Not Found", "--fresh"),
        ("tar: write error: No space left on device", "is full"),
        ("E: unable to pick chroot mode automatically (use --mode for manual selection)", "apt-get install uidmap"),
        ("gcc: error: no input files", ""),
    ],
)
def test_hints_of_a_failed_build(text: str, hint: str) -> None:
    assert hint in base.build_hint(text)
    assert bool(base.build_hint(text)) == bool(hint)


def test_a_keyring_for_a_host_that_is_no_debian() -> None:
    argv = base.mmdebstrap_arguments(BaseDefinition("trixie", "minbase"), Mirrors(), Path("/x/base.tar"), "/keys/debian.gpg")
    assert "--keyring=/keys/debian.gpg" in argv


def test_a_guest_stays_in_the_store_while_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        """An engine without images."""

        def image_exists(self, _: str) -> bool:
            return False

    engine: Any = Nothing()
    store = Store(tmp_path)
    with store.leases.guests_in_use():
        """There is a lock: somebody has booted a guest from here."""
    taken: list[bool] = []

    def look(*_: object, **__: object) -> Guest:
        with store.leases.take_guests() as free:
            taken.append(free)
        return Guest("alpine", GUEST_ARCH, tmp_path / "rootfs.img", None, None, "")

    monkeypatch.setattr(base, "alpine_guest", look)
    monkeypatch.setattr(base, "_archive", look)
    monkeypatch.setattr(base, "_import", lambda *_: None)
    base.guest_base(engine, tmp_path, None, recipes_module.BaseDefinition(guest="alpine"))
    assert taken == [False, False]
    with store.leases.take_guests() as free:
        assert free
