"""The pipeline `python`: every regular file directly in `python/` goes to `/usr/bin`, 0755.

`python3` itself, with all its dependencies, is an overlay of its own (`qcase.pipelines.package_overlay`), made once for all
cases. No byte code is compiled: Python never caches the main program.
"""

from __future__ import annotations

from qcase.host.trees import Tree
from qcase.model import Pipeline
from qcase.pipelines import sh
from qcase.pipelines.pipeline import BuildContext, PipelineSpec
from qcase.suite import templates

PACKAGES = ("python3",)


def build(source: Tree, overlay: Tree, context: BuildContext) -> None:
    """Fill `overlay` from `source/python`."""
    sh.install(source / "python", overlay, context)


SPEC = PipelineSpec(
    name=Pipeline.PYTHON,
    recipe=1,
    packages=PACKAGES,
    copies=True,
    programs=sh.programs,
    installs=sh.installs,
    template=templates.python,
    build=build,
)
