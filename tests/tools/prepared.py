"""`python -m tests.tools.prepared WORKSPACE STORE ARCH`: makes what every case boots, and boots none. Prints case and image."""

from __future__ import annotations

import sys
from pathlib import Path

from qcase.arch import Arch
from qcase.prepare import prepare_case, run_folders
from qcase.prepare.session import Session
from qcase.store.store import Store
from qcase.suite import cases, discover


def main() -> None:
    workspace, arch = cases.Workspace.open(Path(sys.argv[1])), Arch(sys.argv[3])
    target = arch.default_target
    log = workspace.root / "target" / "build.log"
    log.parent.mkdir(exist_ok=True)
    with Session(workspace, arch, target, Store(Path(sys.argv[2])), lambda _: None) as session:
        for case in discover.discover(workspace, arch, target).cases:
            assert isinstance(case, cases.Case), case
            layout = run_folders.case_asset_layout(workspace.root, target, case.display_name)
            with prepare_case.prepare_case_assets(case, layout, session, log) as prepared:
                print(case.display_name, prepared.image)


if __name__ == "__main__":
    main()
