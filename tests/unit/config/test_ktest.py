"""`[qcase] pipeline = "ktest"`, `[qcase.kernel]` and `[qcase.exit]`."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcase.config.case_file import CaseConfig, Placeholders
from qcase.config.load import load_case_config
from qcase.errors import ConfigError

DEVICE = 'args = ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]\n'
KTEST = DEVICE + '[qcase]\npipeline = "ktest"\n'


def load(text: str, folder: Path) -> CaseConfig:
    file = folder / "case" / "qemu-x86_64.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return load_case_config(file, placeholders=Placeholders(folder))


def test_a_case_with_a_kernel_of_its_own(tmp_path: Path) -> None:
    own = '[qcase.kernel]\nbuild = "make ${args} ${case_dir}"\noutput = "k"\nwhere = "c"\nargs = ["T=heap x"]\n'
    config = load(KTEST + "kernel_env = { A = 'b' }\n" + own + "[qcase.exit]\npass = 33\nfail = [35, 1]\nskip = [37]\n", tmp_path)
    assert config.ktest
    assert config.own_kernel == ("make ${args} ${case_dir}", "k", "c")
    assert config.kernel_args == ("T=heap x",)
    assert config.kernel_env == ("A=b",)
    assert config.exits == ("pass\t33", "fail\t35", "fail\t1", "skip\t37")


def test_an_end_may_decide_a_case_of_any_pipeline_without_parts(tmp_path: Path) -> None:
    assert not load(DEVICE + "[qcase.exit]\npass = [33]\n", tmp_path).ktest
    host = 'args = ["-semihosting"]\n'
    assert load(host + "success_regex = ['^ALL']\n[qcase.exit]\npass = [0]\nfail = [1]\n", tmp_path).exits == (
        "pass\t0",
        "fail\t1",
    )
    off = 'success_regex = ["^ALL"]\n[qcase.exit]\npass = ["poweroff"]\n'
    assert load(off, tmp_path).exits == ("pass\tpoweroff",)
    assert load('[qcase]\nresults = "ktap"\n[qcase.exit]\npass = ["poweroff"]\n', tmp_path).exits == ("pass\tpoweroff",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (KTEST, "no success_regex: the case can never pass"),
        (KTEST + '[qcase.kernel]\nbuild = "make"\n', "qcase.kernel: needs output: the file that it leaves"),
        (KTEST + '[qcase.kernel]\noutput = "k"\n', "qcase.kernel: needs build: the command that makes it"),
        (KTEST + '[qcase.kernel]\nwhere = "c"\n', "qcase.kernel.where: needs build"),
        (KTEST + '[qcase.kernel]\nwhere = "nowhere"\n', 'must be "host", "c"'),
        (KTEST + '[qcase.kernel]\nbuild = "make"\noutput = "k"\nargs = ["x"]\n', "qcase.kernel.args: are not used"),
        (KTEST + '[qcase.kernel]\nbuild = "make ${cse}"\noutput = "k"\n', "unknown placeholder ${cse}"),
        ('[qcase.kernel]\nbuild = "make"\noutput = "k"\n', 'qcase.kernel: needs [qcase] pipeline = "ktest"'),
        ('[qcase]\npipeline = "rust"\n', 'qcase.pipeline: must be "ktest", not "rust"'),
        ('test_commands = ["x"]\n' + KTEST, 'test_commands: cannot stand beside pipeline = "ktest"'),
        (KTEST + 'packages = ["zlib"]\n', 'qcase.packages: cannot stand beside pipeline = "ktest"'),
        (KTEST + 'rootfs = "alpine"\n', 'qcase.rootfs: cannot stand beside pipeline = "ktest"'),
        ("[qcase.exit]\nfail = [35]\n", "qcase.exit: needs pass"),
        ("[qcase.exit]\npass = [33]\nskip = 33\n", "qcase.exit.skip: has 33, as pass has"),
        ("[qcase.exit]\npass = [1]\n", "qcase.exit.pass: must not have 1: QEMU ends with it where it fails itself"),
        ("[qcase.exit]\npass = [3]\nskip = [1]\n", "qcase.exit.skip: must not have 1"),
        ("[qcase.exit]\npass = [0]\n", "qcase.exit.pass: must not have 0: QEMU ends with it whenever somebody ends it"),
        ("[qcase.exit]\npass = [33]\nfail = 0\n", "qcase.exit.fail: must not have 0"),
        ("[qcase.exit]\npass = [256]\n", "must be a status from 0 to 255 or 'poweroff', not 256"),
        ("[qcase.exit]\npass = [true]\n", "must be a status from 0 to 255 or 'poweroff', not True"),
        ('[qcase.exit]\npass = "off"\n', "must be a status from 0 to 255 or 'poweroff', not 'off'"),
        ('[qcase.exit]\npass = ["poweroff"]\n', "qcase.exit.pass: has 'poweroff', which is how a kernel that has given up ends"),
        ('[qcase.exit]\npass = [33]\nskip = ["poweroff"]\n', "qcase.exit.skip: must not have 'poweroff'"),
        ('test_commands = ["x"]\n[qcase.exit]\npass = [33]\n', "qcase.exit: cannot stand beside test_commands"),
        ('[[qcase.steps]]\nsend = "x"\n[qcase.exit]\npass = [33]\n', "qcase.exit: cannot stand beside steps"),
        ('args = ["-semihosting"]\nsuccess_regex = ["^ALL"]\n', "a guest opens any file by semihosting; with [qcase.exit]"),
        ('args = ["-semihosting"]\n[qcase.exit]\npass = [0]\n', "let the console decide too"),
        (
            'args = ["-semihosting"]\n[host_http_server]\nport = 80\n[qcase.exit]\npass = [3]\n',
            "semihosting cannot stand beside services",
        ),
        ("[qcase.skip]\nregex = ['x']\n[qcase.exit]\npass = [33]\n", "cannot stand beside [qcase.exit]"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path)
    assert said in str(caught.value), str(caught.value)
