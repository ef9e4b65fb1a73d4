"""What `make reference` makes for a wheel to bring along: the man page, from the help of every command, and the completions."""

from __future__ import annotations

from typer.completion import get_completion_script  # type: ignore[attr-defined]

from tests.tools.docs_site import helps

# Where a system, or the folder `share` of a virtual environment, has them.
COMPLETIONS = {
    "bash": "bash-completion/completions/qcase",
    "zsh": "zsh/site-functions/_qcase",
    "fish": "fish/vendor_completions.d/qcase.fish",
}

HEAD = """\
.TH QCASE 1
.SH NAME
qcase \\- runs the test cases of an operating system in QEMU, hermetically
.SH SYNOPSIS
.B qcase
[options] command [arguments]
.SH DESCRIPTION
"""

ABOUT = """\
.SH EXIT STATUS
0 all passed; 1 some case did not; 2 usage or configuration; 3 infrastructure; 130 interrupted.
Where several apply, 3 comes before 2 before 1.
.SH ENVIRONMENT
.TP
.B QCASE_CACHE_DIR
The store; else $XDG_CACHE_HOME/qcase, else ~/.cache/qcase.
.TP
.B QCASE_CACHE_GROUP
A group whose members may read the store, with --cache-readonly.
.TP
.B QCASE_DISABLE_ROOTFS_CACHE
If set, images are not stored. With CI set, they are not either, unless [cache] write says so.
.TP
.B DOCKER_HOST
The socket of the container engine, unix:///path; an engine on another machine is refused.
.TP
.B QCASE_HOST_WORKSPACE
Where the engine, outside of the container that qcase runs in, has the folder with qcase.toml.
.TP
.B QCASE_DEBIAN_MIRROR, QCASE_DEBIAN_KEYRING
The package mirror from which the base of the toolchain images is made, and its keys, where apt's own are not to be taken.
.TP
.B QCASE_DEBIAN_SNAPSHOT
Where snapshots of Debian's archive are, in place of http://snapshot.debian.org/archive; off: nowhere.
.TP
.B NO_COLOR
If set, nothing is coloured.
.SH FILES
.TP
.B qcase.toml
The workspace.
.TP
.B qemu-<arch>.toml
A case, for one architecture.
.TP
.B target/qcase/logs/
Each case's console, and the QEMU command.
"""


def completion(shell: str) -> str:
    return str(get_completion_script(prog_name="qcase", complete_var="_QCASE_COMPLETE", shell=shell)) + "\n"


def man_page() -> str:
    (_, first), *commands = helps(78)
    parts = [HEAD, _as_it_is(first), ".SH COMMANDS\n"]
    for name, text in commands:
        parts.append(f'.SS "{name}"\n{_as_it_is(text)}')
    return "".join(parts) + ABOUT


def _as_it_is(text: str) -> str:
    """Text that is neither filled nor taken for a request."""
    lines = text.strip("\n").replace("\\", "\\e").replace("-", "\\-").splitlines()
    kept = [("\\&" if line.startswith((".", "'")) else "") + line.rstrip() for line in lines]
    return "\n".join([".nf", *kept, ".fi", ""])
