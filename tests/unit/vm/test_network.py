"""Whether cards of every spelling keep to the network's policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qcase.arch import Arch
from qcase.config import qemu_options
from qcase.config.qemu_options import ArgumentError
from qcase.vm import network
from qcase.vm.arguments import MachineSpec, arguments
from qcase.vm.network import Network
from qcase.vm.services import Forwards

JSON = '{"type":"user","id":"n"}'


def limited(words: str, policy: Network) -> list[str]:
    return qemu_options.join(network.limit(qemu_options.split(words.split()), policy))


@pytest.mark.parametrize(
    ("words", "restricted", "none"),
    [
        ("-netdev user,id=n", "-netdev user,id=n,restrict=on", "-netdev hubport,id=n,hubid=0"),
        ("--netdev id=n,type=user", "--netdev id=n,type=user,restrict=on", "--netdev hubport,id=n,hubid=0"),
        (
            "-netdev user,id=n,hostfwd=tcp::1-:2",
            "-netdev user,id=n,hostfwd=tcp::1-:2,restrict=on",
            "-netdev hubport,id=n,hubid=0",
        ),
        (f"-netdev {JSON}", f'-netdev {JSON[:-1]},"restrict":true}}', '-netdev {"type":"hubport","id":"n","hubid":0}'),
        ("-nic user,model=e1000", "-nic user,model=e1000,restrict=on", "-nic hubport,model=e1000,hubid=0"),
        ("-nic user", "-nic user,restrict=on", "-nic hubport,hubid=0"),
        ("-nic none", "-nic none", "-nic none"),
        ("-net nic -net user", "-net nic -net user,restrict=on", "-net nic"),
        ("-nic user -nic user", "-nic user,restrict=on -nic user,restrict=on", "-nic hubport,hubid=0 -nic hubport,hubid=1"),
    ],
)
def test_what_a_policy_makes_of_a_card(words: str, restricted: str, none: str) -> None:
    assert limited(words, "restricted") == restricted.split()
    sinks = [word for word in limited(words, "none") if "qcase-sink" in word]
    assert sinks == [f"hubport,id=qcase-sink-{at},hubid={at}" for at in range(none.count("hubport"))]
    options = [o for o in network.limit(qemu_options.split(words.split()), "none") if o.value not in sinks]
    assert qemu_options.join(options) == none.split()
    assert limited(words, "user") == words.split()


@pytest.mark.parametrize(
    "words",
    [
        "-nic tap,ifname=tap0",
        "-netdev tap,id=n",
        "-netdev bridge,id=n",
        "-netdev stream,id=n,addr.type=unix,addr.path=/x",
        "-netdev passt,id=n",  # of a newer QEMU, and whatever comes after it
        "-net socket,connect=:1",
        '-netdev {"type":"vhost-user","id":"n","chardev":"c"}',
        "-device vhost-vsock-pci,guest-cid=3",
        "-nic {}",
    ],
)
def test_what_is_not_known_to_keep_to_a_policy_is_refused(words: str) -> None:
    for policy in ("restricted", "none"):
        with pytest.raises(ArgumentError, match="network = ") as caught:
            limited(words, policy)
        assert '[qcase] network = "user"' in caught.value.hint
    assert limited(words, "user") == words.split()


@pytest.mark.parametrize("option", ["restrict=off", "norestrict", "guestfwd=tcp:10.0.2.100:80-cmd:id", "smb=/x"])
def test_what_goes_around_a_restricted_network_is_refused(option: str) -> None:
    with pytest.raises(ArgumentError, match='network = "restricted"'):
        limited(f"-netdev user,id=n,{option}", "restricted")
    assert option.partition("=")[0] not in " ".join(limited(f"-netdev user,id=n,{option}", "none"))
    nested = {"type": "user", "id": "n", "guestfwd": [{"str": "tcp:10.0.2.100:80-cmd:id"}]}
    with pytest.raises(ArgumentError, match="guestfwd"):
        limited(f"-netdev {json.dumps(nested, separators=(',', ':'))}", "restricted")


@pytest.mark.parametrize(
    ("words", "policy", "cards"),
    [
        ("", "restricted", ["-device virtio-net-pci,netdev=net0", "-netdev user,id=net0,restrict=on"]),
        ("-nic user", "restricted", []),  # its own card, and no second one
        ("-device e1000,netdev=net0", "restricted", ["-netdev user,id=net0,restrict=on"]),
        ("-device e1000,netdev=net0", "none", ["-netdev hubport,id=net0,hubid=0", "-netdev hubport,id=qcase-sink-0,hubid=0"]),
        ("", "none", ["-nic none"]),
        ("-sd x.img", "user", ["-nic none"]),  # another root disk than usual, and no word of a network
        ("-drive if=none,id=n,file=x -device nvme,drive=n", "restricted", ["-nic none"]),
        ("-sd x.img -netdev user,id=net0", "user", ["-device virtio-net-pci,netdev=net0"]),
    ],
)
def test_which_card_a_case_is_given(words: str, policy: Network, cards: list[str]) -> None:
    line = arguments(MachineSpec(Arch.X86_64, tuple(words.split()), Path("/image"), Path("/kernel"), network=policy))
    given = qemu_options.split(line[1 + len(words.split()) :])
    told = [" ".join(o.words) for o in given if o.kind in ("netdev", "nic", "net") or "netdev=" in (o.value or "")]
    assert told == cards


# --- services of the host -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "after"),
    [
        ("-netdev user,id=n", "-netdev user,id=n,host=10.0.2.4,guestfwd=tcp:10.0.2.2:80-cmd:x"),
        ("-nic user,model=e1000", "-nic user,model=e1000,host=10.0.2.4,guestfwd=tcp:10.0.2.2:80-cmd:x"),
        ("-net nic -net user", "-net nic -net user,host=10.0.2.4,guestfwd=tcp:10.0.2.2:80-cmd:x"),
        (f"-netdev {JSON}", f'-netdev {JSON[:-1]},"host":"10.0.2.4","guestfwd":[{{"str":"tcp:10.0.2.2:80-cmd:x"}}]}}'),
        (
            "-netdev user,id=n,net=10.0.3.0/24,dhcpstart=10.0.3.15",
            "-netdev user,id=n,net=10.0.3.0/24,dhcpstart=10.0.3.15,host=10.0.3.4,guestfwd=tcp:10.0.3.2:80-cmd:x",
        ),
        ("-netdev user,id=n,host=10.0.2.9", "-netdev user,id=n,host=10.0.2.4,guestfwd=tcp:10.0.2.9:80-cmd:x"),
        (
            "-netdev user,id=n,net=192.168.7.0",
            "-netdev user,id=n,net=192.168.7.0,host=192.168.7.4,guestfwd=tcp:192.168.7.2:80-cmd:x",
        ),
    ],
)
def test_services_are_where_the_host_was(words: str, after: str) -> None:
    options = qemu_options.split(words.split())
    assert qemu_options.join(network.forward(options, [(80, "x")], None)) == after.split()


def test_tftp_alone_leaves_the_host_where_it_is() -> None:
    options = qemu_options.split(["-netdev", "user,id=n,host=10.0.2.9"])
    assert qemu_options.join(network.forward(options, [], "/a,b"))[1] == "user,id=n,host=10.0.2.9,tftp=/a,,b"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("-nic none", "need a card on a `user` network"),
        ("", "need a card on a `user` network"),
        ("-netdev hubport,id=n,hubid=0", "need a card on a `user` network"),
        ("-netdev user,id=n,host=10.0.2.4", "leaves no address"),
        ("-netdev user,id=n,dns=10.0.2.4", "leaves no address"),
        ("-netdev user,id=n,net=nonsense", "leaves no address"),
        ("-netdev user,id=n,tftp=/x", "has a TFTP server already"),
    ],
)
def test_services_without_a_place_are_refused(words: str, why: str) -> None:
    with pytest.raises(ArgumentError, match=why):
        network.forward(qemu_options.split(words.split()), [(80, "x")], "/folder")


def test_a_machine_with_services_gets_a_card_whatever_its_root_disk(tmp_path: Path) -> None:
    args = ("-device", "nvme,drive=nvm,serial=x", "-drive", "if=none,id=nvm,file=a")
    spec = MachineSpec(Arch.X86_64, args, tmp_path / "i", tmp_path / "k", forwards=Forwards(((80, "x"),)))
    words = arguments(spec)
    assert "user,id=net0,restrict=on,host=10.0.2.4,guestfwd=tcp:10.0.2.2:80-cmd:x" in words
    assert "virtio-net-pci,netdev=net0" in words
    with pytest.raises(ArgumentError, match="leaves no way to the services"):
        arguments(MachineSpec(Arch.X86_64, args, tmp_path / "i", tmp_path / "k", network="none", forwards=spec.forwards))


@pytest.mark.parametrize(
    ("words", "name_server"),
    [
        ("-netdev user,id=n", "10.0.2.3"),
        ("-nic user,net=10.0.3.0/24", "10.0.3.3"),
        ("-netdev user,id=n,dns=1.2.3.4", "1.2.3.4"),
        ("-netdev tap,id=n", None),
        ("-nic none", None),
    ],
)
def test_the_name_server_of_a_network(words: str, name_server: str | None) -> None:
    assert network.nameserver(qemu_options.split(words.split())) == name_server


def test_our_initramfs_is_told_of_it_where_it_answers(tmp_path: Path) -> None:
    for policy, own, told in (("user", True, True), ("user", False, False), ("restricted", True, False)):
        spec = MachineSpec(Arch.X86_64, (), tmp_path / "i", tmp_path / "k", append="a", network=policy, own_init=own)  # type: ignore[arg-type]
        assert ("a qcase.dns=10.0.2.3" in arguments(spec)) is told
