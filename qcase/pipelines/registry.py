"""Table of the pipelines that build an overlay from a folder of sources: those of qcase, and those of plug-ins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qcase import plugins
from qcase.errors import UsageError
from qcase.model import Pipeline
from qcase.pipelines import c, python, rust, sh
from qcase.pipelines.pipeline import PipelineSpec
from qcase.suite.cases import source_folders

_BUILT_IN = {spec.name: spec for spec in (c.SPEC, python.SPEC, sh.SPEC, rust.SPEC)}


class Registry(Mapping[Pipeline, PipelineSpec]):
    """The pipelines by name. A plug-in is imported when its pipeline is looked up."""

    def __init__(self) -> None:
        self.loaded = dict(_BUILT_IN)

    def __getitem__(self, name: Pipeline) -> PipelineSpec:
        if name not in self.loaded:
            if name not in source_folders():
                raise KeyError(name)
            spec = plugins.load(plugins.PIPELINES, name.value, tuple(Pipeline), PipelineSpec)
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


PIPELINES = Registry()
