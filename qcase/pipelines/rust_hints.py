"""Advice about builds of crates that failed, by what cargo and build scripts say."""

from __future__ import annotations

import re

_ANOTHER_IMAGE = "[toolchain.rust] image in qcase.toml names another image"
_PACKAGE = "[qcase] packages names the package that has it, in Alpine often the library's name with"

# The first that is found counts.
_HINTS = (
    (r"cannot find -l(?P<name>\S+?):? ", f"programs are linked statically, with a lib{{name}}.a: {_PACKAGE} -static"),
    (
        r"system library `[^`\s]+` required by crate|Could not find directory of \w+ installation",
        f"a build has the libraries of the guest's packages alone: {_PACKAGE} -dev, and beside it the one with -static",
    ),
    (
        r"requires rustc \d|not supported by the following package|feature `edition\d+` is required|"
        r"not stabilized in this version of Cargo|#!\[feature\]. may not be used on the stable",
        "[toolchain.rust] image in qcase.toml names an image with a newer Rust; or take a version that this one builds, of a"
        " dependency by `cargo update --precise`",
    ),
    (
        r"is `[^`\s]+` not installed\?|Could not find `\w+`|Can't locate \S+ in @INC",
        "the image has no such program for a build script: a feature of the crate may do without it, or a library of the "
        f"guest's packages; or {_ANOTHER_IMAGE}, which has it (docs: 'Tools that the image lacks')",
    ),
    (
        r"No such file or directory",
        "a build sees the case's folder, and beside it what manifests and include_str! name in the workspace; a relative"
        " link in the case takes in anything else of the workspace",
    ),
)


def hint(said: str) -> str:
    """Return advice about a failed build if its output contains a known message; else the empty string."""
    found = ((text, match) for pattern, text in _HINTS if (match := re.search(pattern, said)))
    return next((text.format_map(match.groupdict()) for text, match in found), "")
