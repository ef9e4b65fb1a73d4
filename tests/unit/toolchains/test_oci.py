"""Images as they travel: what two builds have in common, and what of an image that arrives is checked."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from qcase.containers.container import SOURCE_DATE_EPOCH
from qcase.errors import InfraError
from qcase.toolchains import oci, oci_layout, oci_seal
from qcase.toolchains.oci import Blob, Packed

LABELS = {"qcase": "1", oci.NAME_LABEL: "own", oci.RECIPE_LABEL: "a" * 64, oci.IDENTITY_LABEL: "b" * 64}


@dataclass(frozen=True)
class File:
    """A member of a layer."""

    path: str
    content: bytes = b""
    type: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    mtime: int = 1_700_000_000
    xattrs: Mapping[str, str] | None = None


def folder(path: str, **about: Any) -> File:
    return File(path, type=tarfile.DIRTYPE, mode=about.pop("mode", 0o755), **about)


def layer(*files: File) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for file in files:
            member = tarfile.TarInfo(file.path)
            member.type, member.linkname, member.mode, member.mtime = file.type, file.link, file.mode, file.mtime
            member.size = len(file.content)
            member.uname = "builder"
            member.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in (file.xattrs or {}).items()}
            tar.addfile(member, io.BytesIO(file.content))
    return buffer.getvalue()


def saved(*layers: bytes, **config: Any) -> tarfile.TarFile:
    """An archive as an engine saves an image."""
    diff_ids = [oci.sha256(one) for one in layers]
    document = {"architecture": "amd64", "os": "linux", "created": "2026-11-29T12:34:56Z", "config": config}
    document["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    members = {"manifest.json": json.dumps([{"Config": "config.json", "Layers": names, "RepoTags": None}]).encode()}
    members |= {"config.json": json.dumps(document).encode(), **dict(zip(names, layers, strict=True))}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    buffer.seek(0)
    return tarfile.open(fileobj=buffer, mode="r:")


def seal(target: Path, *layers: bytes, **config: Any) -> Packed:
    return oci_seal.seal(saved(*layers, **config), LABELS, target, {})


def unpacked(image: Packed, number: int = 0) -> dict[str, tarfile.TarInfo]:
    content = b"".join(oci.inflated([(image.folder / image.layers[number].path).read_bytes()], oci.LAYER))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {member.name: member for member in tar}


def content_of(image: Packed, path: str, number: int = 0) -> bytes:
    content = b"".join(oci.inflated([(image.folder / image.layers[number].path).read_bytes()], oci.LAYER))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found = tar.extractfile(path)
        assert found is not None
        return found.read()


PYC = bytes.fromhex("a70d0d0a") + bytes(4) + (1_700_000_000).to_bytes(4, "little") + (7).to_bytes(4, "little") + b"code"
FILES = (
    folder("etc"),
    File("etc/shadow", b"root:*:20423:0:99999:7:::\n_apt:!:20423::::::\n", mode=0o640),
    folder("usr"),
    File("usr/tool", b"tool", mode=0o755),
    File("usr/tool-1", type=tarfile.LNKTYPE, link="usr/tool", mode=0o755),
    File("usr/link", type=tarfile.SYMTYPE, link="tool", mode=0o777),
    File("usr/module.pyc", PYC),
    File(f"usr/{'long' * 40}/{'näme' * 30}", b"long"),
)


def test_two_builds_are_one_image(tmp_path: Path) -> None:
    first = seal(tmp_path / "1", layer(*FILES), Env=["PATH=/bin"])
    later = [replace(file, mtime=1_800_000_000) for file in FILES]
    later[1] = replace(later[1], content=later[1].content.replace(b"20423", b"20789"))
    # The file is found under its other name first, and there are logs, caches, lists and old copies.
    tool, link = later[3:5]
    later[3:5] = [replace(tool, path=link.path), replace(link, path=tool.path, link=link.path)]
    later[6] = replace(later[6], content=PYC[:8] + (1_800_000_000).to_bytes(4, "little") + PYC[12:])
    later[0] = replace(later[0], mode=0o40755)  # as the engine writes what `COPY` makes
    noise = ["var/log/apt/history.log", "var/cache/ldconfig/aux-cache", "var/lib/apt/lists/x", "etc/machine-id", "etc/shadow-"]
    noise += ["var/lib/dpkg/status-old", "etc/apt/sources.list", "tmp/x", "etc/hostname", "var/log/.wh.old"]
    second = seal(tmp_path / "2", layer(*reversed(later), *(File(path, b"noise") for path in noise)), Env=["PATH=/bin"])
    assert first.digest == second.digest
    assert first.blobs == second.blobs
    assert b"2026" not in second.config


def test_what_a_layer_has_stays(tmp_path: Path) -> None:
    files = (*FILES, File("usr/ping", b"p", xattrs={"security.capability": "\x01\x02"}), File("usr/.wh.gone"))
    image = seal(tmp_path, layer(*files))
    found = unpacked(image)
    assert list(found) == sorted(found, key=os.fsencode)
    assert set(found) == {file.path for file in files}
    assert all(member.mtime == SOURCE_DATE_EPOCH and not member.uname for member in found.values())
    assert (found["usr/tool"].type, found["usr/tool-1"].type) == (tarfile.REGTYPE, tarfile.LNKTYPE)
    assert found["usr/tool-1"].linkname == "usr/tool"
    assert found["usr/tool"].mode == 0o755
    assert found["usr/link"].linkname == "tool"
    assert found["usr/ping"].pax_headers["SCHILY.xattr.security.capability"] == "\x01\x02"
    assert content_of(image, "etc/shadow") == b"root:*::0:99999:7:::\n_apt:!:::::::\n"
    # Python still takes the file for that of its source, which has the same time now.
    assert content_of(image, "usr/module.pyc") == PYC[:8] + SOURCE_DATE_EPOCH.to_bytes(4, "little") + PYC[12:]


@pytest.mark.parametrize(
    "change",
    [
        {"content": b"other"},
        {"mode": 0o700},
        {"path": "usr/another"},
        {"xattrs": {"user.x": "y"}},
    ],
    ids=str,
)
def test_another_file_is_another_image(tmp_path: Path, change: Mapping[str, Any]) -> None:
    one = File("usr/tool", b"tool", mode=0o755)
    assert seal(tmp_path / "1", layer(one)).digest != seal(tmp_path / "2", layer(replace(one, **change))).digest


def test_a_layer_that_has_nothing_new_is_left_out(tmp_path: Path) -> None:
    base, tool = layer(folder("etc"), folder("etc/apt")), layer(File("usr/tool", b"tool"))
    mirror = layer(folder("etc"), folder("etc/apt"), File("etc/apt/sources.list", b"deb http://mirror"))
    assert seal(tmp_path / "1", base, mirror, tool).digest == seal(tmp_path / "2", base, tool).digest
    assert len(seal(tmp_path / "3", base, layer(folder("etc", mode=0o700)), tool).layers) == 3
    gone = layer(folder("etc"), File("etc/.wh.apt"))
    assert len(seal(tmp_path / "4", base, gone, layer(folder("etc"), folder("etc/apt"))).layers) == 3


def test_layers_that_two_images_have_are_written_once(tmp_path: Path) -> None:
    base, one, two = layer(folder("etc")), layer(File("one", b"1")), layer(File("two", b"2"))
    done: oci_seal.Done = {}
    first = oci_seal.seal(saved(base, one), LABELS, tmp_path / "shared", done)
    second = oci_seal.seal(saved(base, two), LABELS, tmp_path / "shared", done)
    assert first.layers[0] == second.layers[0]
    assert second.digest == seal(tmp_path / "alone", base, two).digest
    assert len(done) == 3


def inspected(image: Packed, **config: Any) -> dict[str, Any]:
    """An image as an engine shows it, or one that was made from it by a change of its configuration."""
    document = json.loads(image.config)
    shown = {"Hostname": "", "User": "", "Env": None, "OnBuild": None, "WorkingDir": "/", **document["config"], **config}
    layers = {"Type": "layers", "Layers": document["rootfs"]["diff_ids"]}
    return {"Id": "sha256:1", "Architecture": "amd64", "Os": "linux", "Config": shown, "RootFS": layers}


def test_what_was_made_from_a_sealed_image_is_not_taken_for_it(tmp_path: Path) -> None:
    image = seal(tmp_path, layer(*FILES), Env=["PATH=/bin"])
    shown = inspected(image)
    assert oci.sealed_identity(shown) == LABELS[oci.IDENTITY_LABEL]
    labels = shown["Config"]["Labels"]
    more = {**shown, "RootFS": {"Layers": [*shown["RootFS"]["Layers"], f"sha256:{'1' * 64}"]}}
    others = [more, inspected(image, Env=["PATH=/evil"]), inspected(image, Entrypoint=["/evil"])]
    others += [inspected(image, Labels={**labels, oci.IDENTITY_LABEL: "c" * 64}), {**shown, "Architecture": "arm64"}]
    others += [inspected(image, Labels={key: value for key, value in labels.items() if key != oci.SEAL}), {}]
    assert [oci.sealed_identity(one) for one in others] == [None] * len(others)


def test_this_zlib_is_the_usual_one() -> None:
    assert oci_seal.usual_zlib()


# --- what arrives


@pytest.fixture
def image(tmp_path: Path) -> Packed:
    """A sealed image of two layers, one of them of several gzip members."""
    target = tmp_path / "layout"
    large = File("large", os.urandom(1000) + bytes(2 * oci_seal.MEMBER))
    packed = seal(target, layer(*FILES), layer(large))
    oci_layout.write_index(target, {"own": packed}, {"own": "qcase/own:aaaaaaaaaaaa"})
    return packed


@pytest.fixture(params=["folder", "file"])
def layout(request: pytest.FixtureRequest, image: Packed, tmp_path: Path) -> Callable[[], Path]:
    """Where the layout is, which is written only when it is asked for: a test may have damaged its files."""

    def write() -> Path:
        if request.param == "folder":
            return image.folder
        path = tmp_path / "layout.tar"
        path.write_bytes(b"".join(oci_layout.archive_of(image.folder)))
        return path

    return write


def accept(config: Mapping[str, Any]) -> None:
    assert config["architecture"] == "amd64"


def arrive(path: Path, digest: str, target: Path) -> Packed:
    with oci_layout.layout(path) as opened:
        return oci.arrive(opened, digest, target, accept)


def test_an_image_arrives_as_it_left(layout: Callable[[], Path], image: Packed, tmp_path: Path) -> None:
    with oci_layout.layout(layout()) as opened:
        assert [(entry.name, entry.digest) for entry in opened.entries] == [("own", image.digest)]
    arrived = arrive(layout(), image.digest, tmp_path / "there")
    assert (arrived.manifest, arrived.config, arrived.layers) == (image.manifest, image.config, image.layers)
    for blob in image.blobs:
        assert (arrived.folder / blob.path).read_bytes() == (image.folder / blob.path).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(b"".join(oci_layout.for_engine(arrived, "qcase/x:1")))) as for_docker:
        described = json.load(for_docker.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert described[0]["RepoTags"] == ["qcase/x:1"]
        assert set(for_docker.getnames()) == {"manifest.json", described[0]["Config"], *described[0]["Layers"]}


def path_of(image: Packed, number: int) -> Path:
    return image.folder / (image.layers[number].path if number >= 0 else oci.blob_path(oci.sha256(image.config)))


def cut(image: Packed) -> str:
    path = path_of(image, 1)
    path.write_bytes(path.read_bytes()[:-10])
    return "its layer 2 of 2 breaks off after"


def lengthened(image: Packed) -> str:
    with path_of(image, 0).open("ab") as file:
        file.write(b"more")
    return "its layer 1 of 2 is longer than"


def another(image: Packed) -> str:
    path = path_of(image, 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "its layer 2 of 2 (is another one|is not compressed as it says)"


def missing(image: Packed) -> str:
    path_of(image, 1).unlink()
    return "blobs/sha256/[0-9a-f]{64} is missing"


def other_config(image: Packed) -> str:
    path = path_of(image, -1)
    path.write_bytes(path.read_bytes().replace(b"amd64", b"arm64"))
    return "its configuration is another one, of the digest"


def other_manifest(image: Packed) -> str:
    path = image.folder / oci.blob_path(image.digest)
    path.write_bytes(path.read_bytes() + b"\n")
    return "its manifest is another one, of the digest"


def no_manifest(image: Packed) -> str:
    (image.folder / oci.blob_path(image.digest)).unlink()
    return "the image sha256:[0-9a-f]{64} is not in it"


DAMAGES = [cut, lengthened, another, missing, other_config, other_manifest, no_manifest]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: str(one.__name__))
def test_what_is_damaged_does_not_arrive(
    damage: Callable[[Packed], str], layout: Callable[[], Path], image: Packed, tmp_path: Path
) -> None:
    said = damage(image)
    with pytest.raises(InfraError, match=said) as caught:
        arrive(layout(), image.digest, tmp_path / "there")
    assert str(layout()) in caught.value.where
    assert "nothing was taken over" in caught.value.hint


def lying(image: Packed, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> str:
    """An image whose digests are right, and whose manifest or configuration says something else than is so. Its digest."""
    config, manifest = json.loads(image.config), json.loads(image.manifest)
    change(config, manifest)
    content = json.dumps(config).encode()
    if manifest["config"] == json.loads(image.manifest)["config"]:
        manifest["config"] |= {"digest": oci.put(image.folder, content), "size": len(content)}
    return oci.put(image.folder, json.dumps(manifest).encode())


LIES: list[tuple[Callable[[Any, Any], object], str]] = [
    (lambda config, _: config["rootfs"]["diff_ids"].reverse(), "its layer 1 of 2 unpacks to something else"),
    (lambda config, _: config["rootfs"]["diff_ids"].pop(), "it has 2 layers, and its configuration names 1"),
    (lambda config, _: config.pop("rootfs"), "its configuration is not understood"),
    (lambda config, _: config["config"].update(Labels=["x"]), "its configuration is not understood"),
    (lambda _, manifest: manifest["layers"][0].update(size=5), "its layer 1 of 2 is longer than the 5 bytes"),
    (lambda _, manifest: manifest["layers"][0].update(size=-1), "its manifest is not understood"),
    (lambda _, manifest: manifest["layers"][0].update(size=True), "its manifest is not understood"),
    (lambda _, manifest: manifest["layers"][0].update(digest="sha256:../../x"), "its manifest is not understood"),
    (lambda _, manifest: manifest["layers"][0].update(mediaType="application/zip"), "packed in a way that is not known"),
    (lambda _, manifest: manifest["layers"][0].update(mediaType=oci.LAYERS[1]), "unpacks to something else"),
    (lambda _, manifest: manifest["config"].update(mediaType="application/vnd.helm"), "it is no image of a container"),
    (lambda _, manifest: manifest["config"].update(size=1 << 30), "its configuration is larger than 4 MiB"),
    (lambda _, manifest: manifest.update(layers=[]), "it has 0 layers"),
    (lambda _, manifest: manifest.update(mediaType=oci.INDEX), "it is a list of images"),
    (lambda _, manifest: manifest.update(mediaType="x/y"), "its manifest is of a kind that is not known here, x/y"),
    (lambda _, manifest: manifest.pop("layers"), "its manifest is not understood"),
]


@pytest.mark.parametrize(("change", "said"), LIES, ids=[f"{number} {said}" for number, (_, said) in enumerate(LIES)])
def test_what_lies_does_not_arrive(change: Callable[[Any, Any], None], said: str, image: Packed, tmp_path: Path) -> None:
    with pytest.raises(InfraError, match=said):
        arrive(image.folder, lying(image, change), tmp_path / "there")


def test_documents_that_are_nested_too_deeply(image: Packed, tmp_path: Path) -> None:
    deep = b"[" * 100_000
    blob = Blob(oci.CONFIG, oci.put(image.folder, deep), len(deep))
    manifest = {**json.loads(image.manifest), "config": blob.as_json()}
    for digest, said in (
        (blob.digest, "its manifest is not understood: .*nested too deeply"),
        (oci.put(image.folder, json.dumps(manifest).encode()), "its configuration is not understood: .*nested too deeply"),
    ):
        with pytest.raises(InfraError, match=said):
            arrive(image.folder, digest, tmp_path / "there")


@pytest.mark.parametrize("header", [{"GNU.sparse.size": "x"}, {"GNU.sparse.map": "a,b"}, {"size": "9" * 20}], ids=str)
def test_a_tar_file_whose_headers_lie(header: dict[str, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("oci-layout")
        member.pax_headers = header
        tar.addfile(member)
        tar.addfile(tarfile.TarInfo("index.json"))
    with pytest.raises(InfraError, match="is neither a folder nor a tar file"), oci_layout.layout(tmp_path / "x"):
        pass


def test_a_layer_of_zeros_without_an_end(image: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci, "LARGEST_IMAGE", oci_seal.MEMBER)
    with pytest.raises(InfraError, match="it unpacks to more than"):
        arrive(image.folder, image.digest, tmp_path / "there")


def test_who_refuses_a_configuration_is_asked_before_a_layer_is_read(image: Packed, tmp_path: Path) -> None:
    path_of(image, 0).unlink()

    def refuse(config: Mapping[str, Any]) -> None:
        raise InfraError("not this one")

    with oci_layout.layout(image.folder) as opened, pytest.raises(InfraError, match="not this one"):
        oci.arrive(opened, image.digest, tmp_path / "there", refuse)


def test_a_layer_that_is_not_compressed_arrives(tmp_path: Path) -> None:
    """As other tools write it."""
    target = tmp_path / "layout"
    image = seal(target, layer(*FILES))
    plain = layer(*FILES)

    def change(config: dict[str, Any], manifest: dict[str, Any]) -> None:
        config["rootfs"]["diff_ids"] = [oci.put(target, plain)]
        manifest["layers"] = [Blob(oci.LAYERS[1], oci.sha256(plain), len(plain)).as_json()]

    digest = lying(image, change)
    oci_layout.write_index(target, {"own": image}, {"own": "x:y"})
    assert arrive(target, digest, tmp_path / "there").layers[0].size == len(plain)


def files() -> Iterator[tuple[str, Callable[[Path], object], str]]:
    yield "nothing", lambda _: None, "cannot be read: No such file"
    yield "no tar file", lambda path: path.write_bytes(b"x" * 2000), "is neither a folder nor a tar file"
    yield "an empty folder", lambda path: path.mkdir(), "there is no oci-layout in it"
    yield "a pipe", os.mkfifo, "cannot be read: is no file"


@pytest.mark.parametrize(("make", "said"), [one[1:] for one in files()], ids=[one[0] for one in files()])
def test_what_is_no_layout(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(InfraError, match=said) as caught, oci_layout.layout(tmp_path / "x"):
        pass
    assert caught.value.where == str(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("oci-layout", b"{}", "is no OCI image layout"),
        ("oci-layout", b'{"imageLayoutVersion": "2.0"}', "of the version 2.0"),
        ("index.json", b"[]", "is no OCI image layout"),
        ("index.json", b'{"manifests": [{"digest": "sha256:../x"}]}', "which is no digest"),
        ("index.json", b" " * (oci.LARGEST_DOCUMENT + 1), "index.json is larger than 4 MiB"),
        ("index.json", b"[" * 100_000, "is no OCI image layout: .*nested too deeply"),
    ],
)
def test_a_layout_that_is_not_understood(name: str, content: bytes, said: str, layout: Callable[[], Path], image: Packed) -> None:
    (image.folder / name).write_bytes(content)
    with pytest.raises(InfraError, match=said), oci_layout.layout(layout()):
        pass


def test_a_pipe_in_a_layout_is_no_blob(image: Packed, tmp_path: Path) -> None:
    path = path_of(image, 0)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InfraError, match="cannot be read: is no file"):
        arrive(image.folder, image.digest, tmp_path / "there")
