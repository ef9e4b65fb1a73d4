"""The step that installs fetched packages into a staging root, without network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qcase.host.trees import Tree

if TYPE_CHECKING:
    from qcase.guests.packages.supply import PackageSupplier


INSTALL_TIMEOUT = 600.0

# Paths in a step.
STAGING = "/qcase/staging"
FETCHED = "/qcase/packages/fetched"

# A repository of just the fetched files, and apk knows no other. The fetch step has checked them, and
# their names are their digests, so neither the index nor a package needs a signature here.
_INSTALL = """\
umask 022
repository=$(mktemp -d)
folder=$repository/$QCASE_APK_ARCH
mkdir "$folder"
for file in @FETCHED@/*.apk; do
    [ ! -f "$file" ] || ln -s "$file" "$folder/"
done
[ ! -f "$file" ] || @APK@ mkndx --allow-untrusted --quiet --output "$folder/APKINDEX.tar.gz" "$folder"/*.apk
status=0
@APK@ --root @STAGING@ --arch "$QCASE_APK_ARCH" --repositories-file /dev/null --repository "$repository" \\
    --allow-untrusted --no-network --no-cache add --no-scripts --no-logfile "$@" || status=$?
rm -rf "$repository"
exit "$status"
"""


def install_program(apk: str) -> str:
    """Return a shell program that adds its arguments to the staging root, with the apk that the word `apk` calls."""
    return _INSTALL.replace("@FETCHED@", FETCHED).replace("@STAGING@", STAGING).replace("@APK@", apk)


def install(supply: PackageSupplier, case: str, asked: Sequence[str], root: Tree, scratch: Path, log: Path | Tree) -> None:
    """Get packages, and add them to a staging root that is the caller's own. Only the fetch step has a network."""
    from qcase.containers.step import Mount, Step
    from qcase.guests.packages.fetch_step import IMAGE

    fetched = scratch / "fetched"
    supply.provide(case, asked, root, scratch / "fetch", log, fetched)
    step = Step(
        image=supply.image(IMAGE),
        argv=("sh", "-euc", "exec 2>&1\n" + install_program("apk"), "install", *asked),
        mounts=(Mount(root, STAGING, False), Mount(fetched, FETCHED, True)),
        env={**supply.config.hooks.guest_package_env, "QCASE_APK_ARCH": supply.arch.value},
        timeout=INSTALL_TIMEOUT,
        name="install packages",
        log=log,
    )
    supply.engine().check(step, supply.emit, case)
