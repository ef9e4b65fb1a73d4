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
