"""Proxies of this machine: the variables that everything with network gets."""

from __future__ import annotations

from collections.abc import Mapping

# Each container with network, the engine's builder and each child process that fetches gets these and no other set. The builder
# keeps them out of images and out of the keys of its cache.
PROXIES = tuple(
    spelling for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy") for spelling in (name, name.upper())
)


def proxies_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the proxy variables of an environment that are set."""
    return {name: environ[name] for name in PROXIES if environ.get(name)}
