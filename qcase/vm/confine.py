"""Confinement of one program by Landlock: the launcher gives up its rights, and then becomes the program.

    python -I -S confine.py RULES /PATH/OF/PROGRAM ARGUMENT …

RULES is JSON: {"read": [paths], "exact": [paths], "write": [paths], "folders": [paths], "network": bool}. The program can read
and execute the paths of `read`, read the regular files of `exact`, whose paths may have no link in them, read and write the files
of `write`, and also make and remove files in the folders of `folders`. Everything else on any disk is closed; a file that is
already open stays open. Without `network` the program cannot connect to or bind a TCP port (from Landlock's version 4 on). From
version 6 on it cannot send a signal, or connect an abstract socket, to a process outside.

A missing path is skipped. A kernel without Landlock ends the launcher with status 125 and a message.
This file is a program of its own, and imports nothing of qcase.
"""

from __future__ import annotations

import ctypes
import json
import os
import stat
import sys

OPENAT2, CREATE, ADD, RESTRICT = (
    437,
    444,
    445,
    446,
)  # system calls; the numbers are the same on every architecture that Linux 5.13 runs on
NO_NEW_PRIVS = 38
STATUS = 125  # exit status of the launcher if it cannot confine

_EXECUTE, _WRITE, _READ, _LIST, _REMOVE_FILE, _MAKE_FILE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_OF_A_FILE = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_FILES = {1: 13, 2: 14, 3: 15, 4: 15}  # number of file rights by version of Landlock
_TCP = 0b11
_NO_SYMLINKS = 0x04
_SCOPES = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("rights", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def version() -> int:
    """Return the kernel's version of Landlock; 0 for none."""
    return max(0, _call(CREATE, None, ctypes.c_size_t(0), 1))


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(ctypes.c_long(number), *arguments))


def restrict(rules: dict[str, list[str]], *, network: bool) -> None:
    """Give up all rights but those of `rules`, for this process and its children. Raises `OSError`."""
    known = version()
    if not known:
        raise OSError("the kernel has no Landlock")
    handled = (1 << _FILES.get(known, 16)) - 1
    tcp = _TCP if known >= 4 and not network else 0
    ruleset = _Ruleset(handled, tcp, _SCOPES if known >= 6 else 0)
    size = 8 if known < 4 else 16 if known < 6 else 24
    made = _checked(_call(CREATE, ctypes.byref(ruleset), ctypes.c_size_t(size), 0))
    read = _EXECUTE | _READ | _LIST
    write = _READ | _WRITE | _TRUNCATE | _IOCTL
    for rights, kind in ((read, "read"), (write, "write"), (write | _LIST | _MAKE_FILE | _REMOVE_FILE, "folders")):
        for path in rules.get(kind, []):
            _allow(made, path, rights & handled)
    for path in rules.get("exact", []):
        _allow(made, path, _READ, exact=True)
    _checked(_call(RESTRICT, made, 0))
    os.close(made)


def _allow(ruleset: int, path: str, rights: int, *, exact: bool = False) -> None:
    try:
        opened = _open_exactly(path) if exact else os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if exact and not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        return
    if not stat.S_ISDIR(os.fstat(opened).st_mode):
        rights &= _OF_A_FILE
    _checked(_call(ADD, ruleset, 1, ctypes.byref(_Beneath(rights, opened)), 0))
    os.close(opened)


def _open_exactly(path: str) -> int:
    """Open a file along a path without links. Raises `OSError`."""
    how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, _NO_SYMLINKS)
    at_cwd = ctypes.c_int(-100)
    return _checked(_call(OPENAT2, at_cwd, ctypes.c_char_p(os.fsencode(path)), ctypes.byref(how), ctypes.c_size_t(24)))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def main() -> None:
    rules = json.loads(sys.argv[1])
    try:
        _checked(ctypes.CDLL(None, use_errno=True).prctl(NO_NEW_PRIVS, 1, 0, 0, 0))
        # The program may read its own /proc entries; its process id stays the same over exec.
        rules.setdefault("read", []).append(f"/proc/{os.getpid()}")
        restrict(rules, network=bool(rules.get("network")))
        os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the launcher's purpose
    except OSError as error:
        print(f"cannot be confined: {error.strerror or error}", file=sys.stderr)
        sys.exit(STATUS)


if __name__ == "__main__":
    main()
