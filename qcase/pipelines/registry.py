"""Table of the pipelines that build an overlay from a folder of sources: those of qcase, and those of plug-ins."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from qcase import plugins
from qcase.errors import UsageError
from qcase.model import Pipeline
from qcase.pipelines.pipeline import PipelineSpec
from qcase.suite.cases import source_folders

_BUILT_IN = {
    Pipeline.C: "qcase.pipelines.c",
    Pipeline.PYTHON: "qcase.pipelines.python",
    Pipeline.SH: "qcase.pipelines.sh",
    Pipeline.RUST: "qcase.pipelines.rust",
}


class Registry(Mapping[Pipeline, PipelineSpec]):
    """The pipelines by name. The module of one is imported when it is looked up."""

    def __init__(self) -> None:
        self.loaded: dict[Pipeline, PipelineSpec] = {}

    def __getitem__(self, name: Pipeline) -> PipelineSpec:
        if name not in self.loaded:
            if name not in source_folders():
                raise KeyError(name)
            spec = _built_in(name) or plugins.load(plugins.PIPELINES, name.value, tuple(Pipeline), PipelineSpec)
            if spec.name != name:
                raise UsageError(f"the plug-in {name} of {plugins.PIPELINES} describes a pipeline named {spec.name}")
            self.loaded[name] = spec
        return self.loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in source_folders()

    def __iter__(self) -> Iterator[Pipeline]:
        return iter(source_folders().values())

    def __len__(self) -> int:
        return len(source_folders())


def _built_in(name: Pipeline) -> PipelineSpec | None:
    if name not in _BUILT_IN:
        return None
    spec: PipelineSpec = importlib.import_module(_BUILT_IN[name]).SPEC
    return spec


PIPELINES = Registry()
