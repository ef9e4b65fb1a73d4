"""The network of a machine: limits a guest to the policy, whatever the form in which a case asks for a card. Pure functions.

    restricted   only -netdev user, with restrict=on: the guest reaches nothing outside, forwarded ports still reach the guest
    user         as the case's arguments say
    none         a card has no cable

`-netdev`, `-nic` and `-net` are read with all of their spellings. A backend that is not known to keep to the policy is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Literal

from qcase.config.qemu_options import ArgumentError, Option, Opts, is_on

Network = Literal["restricted", "user", "none"]

CARD = "net0"

_OPTIONS = ("netdev", "nic", "net")
_OF_A_CARD = ("id", "model", "mac", "macaddr", "addr", "vectors", "name")
_OUT = {
    "guestfwd": "a connection of the guest ends at a program or a host outside",
    "smb": "a folder of the host is shared",
}


def limit(options: Sequence[Option], network: Network) -> list[Option]:
    """Return the arguments, changed to keep to a policy. Raises `ArgumentError` for an argument that cannot be changed so."""
    if network == "user":
        return list(options)
    for option in options:
        if option.kind == "device" and (option.opts().get("driver") or "").startswith("vhost-vsock"):
            raise ArgumentError(f'connects the guest to the host under network = "{network}"', option.shown, _HINT)
    limited = []
    for at, option in enumerate(options):
        changed = _limited(option, network, at) if option.kind in _OPTIONS else option
        limited += [changed] if changed is not None else []
        if changed is not None and changed != option and network == "none":
            limited.append(Option("netdev", f"hubport,id=qcase-sink-{at},hubid={at}"))
    return limited


def forward(options: Sequence[Option], commands: Sequence[tuple[int, str]], tftp: str | None) -> list[Option]:
    """Return the arguments with services of the host: a program for each connection to a port, and a folder for TFTP.

    Every `user` network gets them at the address of its host. QEMU refuses to forward that, so its host moves to the address with
    the number 4. Raises `ArgumentError` if there is no such network.
    """
    changed = []
    found = False
    for option in options:
        opts = option.opts() if option.kind in _OPTIONS else None
        if opts is None or opts.get("type") != "user":
            changed.append(option)
            continue
        found = True
        changed.append(option.with_value(_forwarding(option, opts, commands, tftp).text))
    if not found:
        raise ArgumentError("the services of the host need a card on a `user` network", hint="-netdev user,id=net0 is one")
    return changed


def _forwarding(option: Option, opts: Opts, commands: Sequence[tuple[int, str]], tftp: str | None) -> Opts:
    services = opts.get("host") or address(opts, 2)
    moved = address(opts, 4)
    if services is None or moved is None or moved in (services, opts.get("dns"), opts.get("dhcpstart")):
        raise ArgumentError("leaves no address for the services of the host", option.shown, "let QEMU choose the addresses")
    if tftp is not None and "tftp" in opts:
        raise ArgumentError("has a TFTP server already", option.shown, "leave out tftp= or the service")
    parts = [part for part in opts.parts if part[0] != "host"]
    rules = [f"tcp:{services}:{port}-cmd:{command}" for port, command in commands]
    parts += [("host", moved)] if rules else [part for part in opts.parts if part[0] == "host"]
    if opts.nested:
        old = [value for name, value in parts if name == "guestfwd" and isinstance(value, list)]
        parts = [part for part in parts if part[0] != "guestfwd"]
        parts += [("guestfwd", [*(old[0] if old else []), *({"str": rule} for rule in rules)])] if rules else []
    else:
        parts += [("guestfwd", rule) for rule in rules]
    parts += [("tftp", tftp)] if tftp is not None else []
    return Opts(tuple(parts), opts.implied, opts.nested)


def is_asked_for(options: Sequence[Option]) -> bool:
    """Tell whether the arguments mention a network."""
    return any(option.kind in _OPTIONS for option in options) or any(
        "netdev" in option.opts() for option in options if option.kind == "device"
    )


def has_own_cards(options: Sequence[Option]) -> bool:
    """Tell whether the arguments define cards by `-nic` or `-net`, or state that there are none."""
    return any(option.kind in ("nic", "net") for option in options)


def has_card(options: Sequence[Option]) -> bool:
    """Tell whether a device is the card of the usual backend."""
    return any(option.kind == "device" and option.opts().get("netdev") == CARD for option in options)


def has_backend(options: Sequence[Option]) -> bool:
    """Tell whether the arguments define the usual backend."""
    return any(option.kind == "netdev" and option.opts().get("id") == CARD for option in options)


def nameserver(options: Sequence[Option]) -> str | None:
    """Return the address of the name server that the first network of a guest offers; None if it offers none."""
    for option in options:
        if option.kind in _OPTIONS and (opts := option.opts()).get("type") == "user":
            return opts.get("dns") or address(opts, 3)
    return None


def address(opts: Opts, number: int) -> str | None:
    """Return the address of a `user` network with QEMU's default `number`: 2 is the host, 3 the name server, 15 the guest.

    None if its `net` cannot be read. As in QEMU (`net/slirp.c`), a `net` without a mask has that of its class.
    """
    said = opts.get("net") or "10.0.2.0/24"
    try:
        first = ipaddress.IPv4Address(said.partition("/")[0])
        bits = "8" if int(first) < 128 << 24 else "16" if int(first) < 192 << 24 else "24"
        found = ipaddress.IPv4Network(said if "/" in said else f"{said}/{bits}", strict=False)
    except ValueError:
        return None
    return str(found.network_address + ((0x0200 | number) & int(found.hostmask)))


_HINT = 'if the case needs it: [qcase] network = "user"'


def _limited(option: Option, network: Network, at: int) -> Option | None:
    """Return an option changed to keep to the policy; None to drop the option.

    A card without a cable is on a hub of its own (number `at`), with a port to which nothing is connected: on a hub without a
    port the card could not send, and Linux reports "NETDEV WATCHDOG … timed out" as a fault.
    """
    opts = option.opts()
    kind = opts.get("type")
    if kind in ("none", "nic", "hubport"):
        return option
    if kind != "user":
        raise ArgumentError(f'is no network that keeps to network = "{network}"', option.shown, _HINT)
    if network == "restricted":
        return _restricted(option, opts)
    if option.kind == "net":
        return None
    card = tuple((name, value) for name, value in opts.parts if name in _OF_A_CARD)
    hub = Opts((("type", "hubport"), *card, ("hubid", at if opts.nested else str(at))), opts.implied, opts.nested)
    return option.with_value(hub.text)


def _restricted(option: Option, opts: Opts) -> Option:
    for key, why in _OUT.items():
        if key in opts:
            raise ArgumentError(f'{key}= goes around network = "restricted": {why}', option.shown, _HINT)
    said = opts.get("restrict")
    if said is None:
        return option.with_value(opts.set("restrict", True).text)
    if not is_on(said):
        raise ArgumentError(f'restrict={said} contradicts network = "restricted"', option.shown, _HINT)
    return option
