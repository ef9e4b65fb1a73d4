"""QEMU's monitor (QMP): reads QEMU's events, and detects a standstill of its machine. Pure functions: the caller owns the socket.

    -> qmp_capabilities, cont           QEMU accepted its arguments, and runs the guest
    <- RESET, SHUTDOWN                  caused by the guest or from outside
    <- BLOCK_IO_ERROR, STOP, …          the machine stands still
    -> query-status                     after STOP alone: ask for the reason
    <- {"return": {"status": …}}

A machine that stands still prints nothing any more, and would look like a case that hangs. The names of events and run states
come from QEMU's documentation (`qapi/run-state.json`, `qapi/block-core.json`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qcase import parsing
from qcase.config.qemu_options import Option

GREETING = b'{"execute": "qmp_capabilities"}\n'
CONTINUE = b'{"execute": "cont", "id": "cont"}\n'
ASK = b'{"execute": "query-status", "id": "status"}\n'

# Starts a machine that a reset stopped: the reset, and once it has happened, the rest.
REVIVE = b'{"execute": "set-action", "arguments": {"reboot": "reset"}}\n{"execute": "system_reset"}\n'
_SHUT_DOWN_AT_RESET = b'{"execute": "set-action", "arguments": {"reboot": "shutdown"}}\n'
RESET_REASONS = ("guest-reset", "host-qmp-system-reset")
_CASE = "case"  # the id of the commands of a case
_CALL = "call-"  # the ids of commands whose answers a caller waits for begin so

Whose = Literal["host", "guest", "panic"]

# Run states that a person with an own monitor or debugger can cause.
_BY_HAND = ("paused", "save-vm", "restore-vm", "finish-migrate", "postmigrate", "prelaunch", "inmigrate", "colo", "debug")
_STATES: Mapping[str, tuple[Whose, str]] = {
    "internal-error": ("host", "QEMU met an internal error that keeps the guest from running"),
    "io-error": ("host", "QEMU stopped the guest because of an I/O error of its disk"),
    "watchdog": ("guest", "its watchdog ran out, and the machine is paused"),
    "guest-panicked": ("panic", "the guest told its machine of a panic"),
    "shutdown": ("guest", "the guest powered off, and QEMU goes on"),
}
_ENDS: Mapping[str, str] = {
    "guest-shutdown": "the guest powered off",
    "guest-reset": "the guest reset its machine",
    "guest-panic": _STATES["guest-panicked"][1],
    "host-signal": "somebody sent it a signal",
}


def asking(command: str) -> bytes:
    """Return the message for a command of the case, which is JSON."""
    return json.dumps({**parsing.from_json(command), "id": _CASE}).encode() + b"\n"


def calling(command: str, arguments: Mapping[str, Any], number: int) -> tuple[str, bytes]:
    """Return the id and the message of a command whose answer `Monitor.replies` takes under that id."""
    name = f"{_CALL}{number}"
    return name, json.dumps({"execute": command, "arguments": dict(arguments), "id": name}).encode() + b"\n"


@dataclass(frozen=True)
class Standstill:
    """Reason why a machine does not go on. `whose`: the host's fault, the guest's doing, or a panic that the guest reported.

    `full`: the host's disk has no room for the guest's writes.
    """

    whose: Whose
    why: str
    full: bool = False


@dataclass
class Monitor:
    """State read from the monitor. `by_hand`: another monitor or a debugger exists. `injects`: disks fail on purpose."""

    by_hand: bool = False
    injects: bool = False
    started: bool = False
    shutdown: str = ""  # QEMU's reason for its end, such as `guest-reset`
    resets: int = 0  # by the guest
    revives: bool = False  # a machine that resets or powers off stands still for the case's steps, and may be started again
    downs: list[str] = field(default_factory=list)  # QEMU's reasons for that
    standstill: Standstill | None = None
    barked: bool = False  # the watchdog ran out
    answers: list[str] = field(default_factory=list)  # to commands of the case: an error's text, or empty
    replies: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # to commands of `calling`, by id
    disk_error: Mapping[str, Any] | None = None  # data of the first disk error
    _rest: bytes = b""
    _replies: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, options: Sequence[Option]) -> Monitor:
        """Return the monitor state for the options of a command line."""
        own = {"monitor", "mon", "qmp", "qmp-pretty", "s", "gdb", "incoming", "S"}
        by_hand = any(option.kind in own and option.value not in ("none", "null") for option in options)
        return cls(by_hand, any(fault in (option.value or "") for option in options for fault in ("blkdebug", "error-inject")))

    def hear(self, data: bytes) -> bytes:
        """Process QEMU's messages; return the bytes to answer."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                said = parsing.from_json(line)
            except ValueError:
                continue
            if isinstance(said, dict):
                self._take(said)
        replies, self._replies = self._replies, []
        return b"".join(replies)

    def take_resets(self) -> int:
        """Return the number of resets by the guest since the last call."""
        resets, self.resets = self.resets, 0
        return resets

    def take_downs(self) -> list[str]:
        """Return QEMU's reasons why the machine stood still for its steps since the last call."""
        downs, self.downs, self.shutdown = self.downs, [], ""
        return downs

    def take_answers(self) -> list[str]:
        """Return the answers to commands of the case since the last call: an error's text, or empty."""
        answers, self.answers = self.answers, []
        return answers

    def _take(self, said: Mapping[str, Any]) -> None:
        data = said.get("data") or {}
        if str(said.get("id", "")).startswith(_CALL):
            self.replies[said["id"]] = said
        elif said.get("id") == _CASE:
            self.answers.append(str(said["error"].get("desc", "it gave no reason")) if "error" in said else "")
        elif "return" in said:
            self.started = True
            if said.get("id") == "status":
                self._status(str(said["return"].get("status", "")))
        elif "error" in said and said.get("id") == "cont":
            self._stand("host", f"QEMU does not run the guest: {said['error'].get('desc', '')}")
        elif (event := said.get("event")) == "RESET":
            self.resets += bool(data.get("guest"))
            if self.revives and not data.get("guest"):
                self._replies += [_SHUT_DOWN_AT_RESET, CONTINUE]
        elif event == "SHUTDOWN":
            self.shutdown = str(data.get("reason", ""))
            if self.revives and self.shutdown in (*RESET_REASONS, "guest-shutdown"):
                self.downs.append(self.shutdown)
            if self.shutdown == "host-error":
                self._stand("host", "QEMU met an error that keeps the guest from running")
        elif event == "STOP":
            self._replies.append(ASK)
        elif event is not None:
            self._event(str(event), data)

    def _event(self, event: str, data: Mapping[str, Any]) -> None:
        action = str(data.get("action", ""))
        if event == "BLOCK_IO_ERROR" and action != "ignore":
            self._io_error(action, data)
        elif event == "BLOCK_IMAGE_CORRUPTED":
            self._stand("host", f"a disk image of the guest is damaged: {data.get('msg', '')}")
        elif event == "MEMORY_FAILURE" and action != "ignore":
            self._stand("host", "the host's memory has a fault")
        elif event == "GUEST_PANICKED" and action != "run":
            self._stand("panic", _STATES["guest-panicked"][1])
        elif event == "WATCHDOG":
            self.barked = True
            if action == "pause":
                self._stand(*_STATES["watchdog"])

    def _io_error(self, action: str, data: Mapping[str, Any]) -> None:
        """Process a disk error. If the error is injected (blkdebug) and reported to the guest, the guest goes on."""
        self.disk_error = self.disk_error or dict(data)
        if data.get("nospace"):
            self._stand("host", "no room on the host for what the guest writes", full=True)
        elif action == "stop" or not self.injects:
            doing = "reading" if data.get("operation") == "read" else "writing"
            self._stand("host", f"the host failed in {doing} the guest's disk: {data.get('reason', '')}".rstrip(": "))

    def _status(self, status: str) -> None:
        if self.revives and status in ("shutdown", "prelaunch"):
            return  # until the case's steps have started it again
        if status in _STATES:
            self._stand(*_STATES[status])
        elif status not in ("running", "suspended") and not (self.by_hand and status in _BY_HAND):
            self._stand("host", f"QEMU stopped the machine, and its state is {status}")

    def _stand(self, whose: Whose, why: str, full: bool = False) -> None:
        """Record a standstill. Only the first one counts: later ones are its consequences."""
        self.standstill = self.standstill or Standstill(whose, why, full)

    @property
    def why_ended(self) -> str:
        """Reason of QEMU's end; empty if QEMU gave none."""
        return _ENDS.get(self.shutdown, "")
