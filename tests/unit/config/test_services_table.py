"""Services of the host as a case's file has them: what is meant, and every fault with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.config.case_file import CaseConfig, Placeholders
from qcase.config.load import load_case_config
from qcase.config.services_table import Service
from qcase.errors import ConfigError


def load(folder: Path, text: str) -> CaseConfig:
    path = folder / "qemu-x86_64.toml"
    path.write_text(f'success_regex = ["x"]\n{text}\n')
    return load_case_config(path, placeholders=Placeholders(folder))


@pytest.mark.parametrize(
    ("text", "services"),
    [
        ("", []),
        ("[host_http_server]", []),
        ("[host_http_server]\nport = 80", [Service("http", 80, body="ArceOS local HTTP fixture\n")]),
        ('[host_http_server]\nbind = "127.0.0.1"\nport = 80\nbody = "x"', [Service("http", 80, body="x")]),
        ("[host_http_server]\nport = 80\nbody_size = 3\nbody_byte = 68", [Service("http", 80, size=3, byte=68)]),
        ('[host_http_server]\nport = 80\ndir = "a/b"', [Service("http", 80, folder="a/b")]),
        (
            '[[qcase.services]]\nkind = "http"\nport = 80\nbody = ""\n[[qcase.services]]\nkind = "echo"\nport = 7',
            [Service("http", 80, body="", limit=64 << 20), Service("echo", 7, limit=64 << 20)],
        ),
        ('[[qcase.services]]\nkind = "tftp"\nfolder = "f"', [Service("tftp", folder="f", limit=64 << 20)]),
        ('[[qcase.services]]\nkind = "drop"\nport = 80\nlimit = "1 kB"', [Service("drop", 80, limit=1000)]),
    ],
)
def test_what_is_meant(text: str, services: list[Service], tmp_path: Path) -> None:
    config = load(tmp_path, text)
    assert [Service.parse(one) for one in config.services] == services
    assert not config.warnings


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ('[host_http_server]\nbody = "x"', "host_http_server", "needs port"),
        ("[host_http_server]\nport = 0", "host_http_server.port", "must be 1 or more, not 0"),
        ("[host_http_server]\nport = 70000", "host_http_server.port", "must be 65535 or less, not 70000"),
        ("[host_http_server]\nport = 1\nprot = 2", "host_http_server.prot", "unknown key"),
        ("[host_http_server]\nport = 1\nbody_size = 2000000000", "host_http_server.body_size", "must be 1073741824 or less"),
        ("[host_http_server]\nport = 1\nbody_byte = 256", "host_http_server.body_byte", "must be 255 or less, not 256"),
        ("host_http_server = 3", "host_http_server", "must be a table, not 3"),
        (
            '[host_http_server]\nport = 1\n[[qcase.services]]\nkind = "echo"\nport = 1',
            "qcase.services[0].port",
            "1 is the port of host_http_server already",
        ),
        ('[[qcase.services]]\nkind = "echo"', "qcase.services[0]", "needs port"),
        ('[[qcase.services]]\nkind = "web"\nport = 1', "qcase.services[0].kind", 'must be "http", "echo", "tftp" or "drop"'),
        ('[[qcase.services]]\nkind = "http"\nport = 1', "qcase.services[0]", "needs one of body, body_size and folder"),
        ('[[qcase.services]]\nkind = "http"\nport = 1\nbody = "a"\nfolder = "b"', "qcase.services[0]", "needs one of"),
        (
            '[[qcase.services]]\nkind = "http"\nport = 1\nbody = "a"\nbody_byte = 3',
            "qcase.services[0].body_byte",
            "needs body_size",
        ),
        ('[[qcase.services]]\nkind = "http"\nprot = 1\nbody = "a"', "qcase.services[0].prot", "unknown key"),
        ("[qcase.services]\nport = 1", "qcase.services", "must be tables"),
        ("[qcase]\nservices = 3", "qcase.services", "must be tables"),
        ('[[qcase.services]]\nkind = "tftp"\nfolder = "x"\nport = 1', "qcase.services[0].port", "means nothing"),
        ('[[qcase.services]]\nkind = "drop"\nport = 8\nlimit = "5 GiB"', "qcase.services[0].limit", "must be 1 GiB or less"),
        ('[qcase]\nnetwork = "none"\n[[qcase.services]]\nkind = "echo"\nport = 7', "qcase.network", "leaves no way"),
        ("snapshot = false", "snapshot", "must not be false: a guest would write into an image"),
        ('rootfs_write_policy = "persist"', "rootfs_write_policy", 'must be "discard"'),
        ('rootfs_write_policy = "keep"', "rootfs_write_policy", 'must be "discard" or "persist", not "keep"'),
    ],
)
def test_a_fault_is_one_error_with_its_place(text: str, key: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert what in problem.what


def test_two_tftp_servers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a machine has one TFTP server"):
        load(tmp_path, '[[qcase.services]]\nkind = "tftp"\nfolder = "f"\n' * 2)


def test_what_axbuild_says_of_writes_is_read_where_it_changes_nothing(tmp_path: Path) -> None:
    assert not load(tmp_path, 'snapshot = true\nrootfs_write_policy = "discard"').warnings
