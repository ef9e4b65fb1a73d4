"""QEMU's command line, read as QEMU does. What QEMU itself makes of it is in tests/vm/test_disks.py."""

from __future__ import annotations

import random

import pytest

from qcase.config import qemu_options
from qcase.config.qemu_options import ArgumentError, Option


def test_options_are_split_as_qemu_does() -> None:
    options = qemu_options.split(["-m", "-1", "--drive", "file=x", "-nographic", "disk.img", "-M", "virt"])
    assert [(o.kind, o.value) for o in options] == [
        ("m", "-1"),  # a value may look like an option
        ("drive", "file=x"),
        ("nographic", None),
        ("", "disk.img"),
        ("machine", "virt"),
    ]
    assert qemu_options.join(options) == ["-m", "-1", "--drive", "file=x", "-nographic", "disk.img", "-M", "virt"]


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (["-nographc"], "-nographc: is no option of QEMU that qcase knows", ""),
        (["---drive", "x"], "---drive: is no option", ""),
        (["-"], "-: is no option", ""),
        (["-m"], "-m: requires an argument", ""),
        (["-m=512"], "-m=512: is no option", 'two words: "-m", "512"'),
        (["--drive file=x"], "--drive file=x: is no option", 'two words: "--drive", "file=x"'),
    ],
)
def test_what_qemu_would_not_take_is_refused(words: list[str], what: str, hint: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        qemu_options.split(words)
    assert what in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("value", "implied", "parts"),
    [
        ("a=1,b=2", "", [("a", "1"), ("b", "2")]),
        ("nvme,drive=d", "driver", [("driver", "nvme"), ("drive", "d")]),
        ("file=a,,b,,,id=c", "", [("file", "a,b,"), ("id", "c")]),
        ("readonly,nosnapshot,nodelay=x", "", [("readonly", "on"), ("snapshot", "off"), ("nodelay", "x")]),
        ("x,y", "driver", [("driver", "x"), ("y", "on")]),
        ("a,,b=c,d=1", "driver", [("driver", "a,b=c"), ("d", "1")]),
        ("a=,b=", "", [("a", ""), ("b", "")]),
        ("", "driver", []),
        ("a=b,", "", [("a", "b")]),
    ],
)
def test_values_have_the_parts_that_qemu_sees(value: str, implied: str, parts: list[tuple[str, str]]) -> None:
    assert list(qemu_options.parse(value, implied).parts) == parts


def test_the_last_value_of_a_key_counts_and_the_first_id() -> None:
    opts = qemu_options.parse("id=one,file=a,id=two,file=b")
    assert (opts.get("id"), opts.get("file"), opts.get("none")) == ("one", "b", None)
    assert opts.set("file", "c").text == "id=one,file=c,id=two"


def test_blockdev_is_json_or_keys_without_switches() -> None:
    plain = Option("blockdev", "raw,node-name=a,file.driver=file,file.filename=x,,y").opts()
    written = '{"driver":"raw","node-name":"a","file":{"driver":"file","filename":"x,y"}}'
    nested = Option("blockdev", written).opts()
    assert plain.parts == nested.parts
    assert nested.text == written
    assert nested.below("file").get("filename") == "x,y"
    for wrong in ("raw,read-only", '{"driver":', '{"a":1,"a":2}', '{"file.filename":"x"}'):
        with pytest.raises(ArgumentError, match="-blockdev"):
            Option("blockdev", wrong).opts()
    assert Option("nic", '{"type":"user"}').opts().get("type") == '{"type":"user"}'  # which knows no JSON


def test_what_is_written_is_read_the_same() -> None:
    """2,000 values of a generator; the seed is fixed."""
    chance = random.Random(13)
    for _ in range(2000):
        parts = [
            (chance.choice(["file", "id", "a.b", "x-y", "no"]), "".join(chance.choices("a,=b n", k=chance.randrange(6))))
            for _ in range(chance.randrange(1, 5))
        ]
        implied = chance.choice(["", "driver"])
        if implied:
            parts[0] = ("driver", parts[0][1] or "d")
        opts = qemu_options.Opts(tuple(parts), implied)
        assert qemu_options.parse(opts.text, implied).parts == tuple(parts), opts.text
