"""`python -m tests.prepared WORKSPACE STORE ARCH`: makes what every case boots, and boots none. Prints case and image."""

from __future__ import annotations

import sys
from pathlib import Path

from qcase import prepare, suite
from qcase.model import Arch
from qcase.store import Store


def main() -> None:
    workspace, arch = suite.Workspace.open(Path(sys.argv[1])), Arch(sys.argv[3])
    target = arch.default_target
    log = workspace.root / "target" / "build.log"
    log.parent.mkdir(exist_ok=True)
    with prepare.Session(workspace, arch, target, Store(Path(sys.argv[2])), lambda _: None) as session:
        for case in suite.discover(workspace, arch, target).cases:
            assert isinstance(case, suite.Case), case
            layout = prepare.case_asset_layout(workspace.root, target, case.display_name)
            with prepare.prepare_case_assets(case, layout, session, log) as prepared:
                print(case.display_name, prepared.image)


if __name__ == "__main__":
    main()
