"""The network of a machine: limits a guest to the policy, whatever the form in which a case asks for a card. Pure functions.

    restricted   only -netdev user, with restrict=on: the guest reaches nothing outside, forwarded ports still reach the guest
    user         as the case's arguments say
    none         a card has no cable

`-netdev`, `-nic` and `-net` are read with all of their spellings. A backend that is not known to keep to the policy is refused.
"""

from __future__ import annotations

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
