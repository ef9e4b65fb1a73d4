"""Table of the pipelines that build an overlay from a folder of sources: those of qcase, and those of plug-ins."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping

from qcase import plugins
from qcase.canonical import JSON, as_json
from qcase.model import Pipeline
from qcase.pipelines.pipeline import PipelineSpec
from qcase.suite.cases import source_folders
from qcase.suite.templates import Sources

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
        self._identities: dict[Pipeline, Mapping[str, str]] = {}

    def __getitem__(self, name: Pipeline) -> PipelineSpec:
        if name not in self.loaded:
            if name not in source_folders():
                raise KeyError(name)
            own = _built_in(name)
            self.loaded[name] = own or plugins.load(plugins.PIPELINES, name.value, tuple(Pipeline), PipelineSpec, _CHECKS)
        return self.loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in source_folders()

    def __iter__(self) -> Iterator[Pipeline]:
        return iter(source_folders().values())

    def __len__(self) -> int:
        return len(source_folders())

    def plugin(self, name: Pipeline) -> Mapping[str, str] | None:
        """Return the identity of the plug-in that brings a pipeline, which enters the pipeline's keys; None for one of qcase."""
        if name in _BUILT_IN or name not in self:
            return None
        spec = self[name]  # it is loaded
        if name not in self._identities:
            self._identities[name] = plugins.declared(plugins.PIPELINES, spec.name, tuple(Pipeline)).identity
        return self._identities[name]

    def forget(self) -> None:
        """Drop the pipelines of plug-ins. For tests, which install some."""
        for name in self.loaded.keys() - _BUILT_IN.keys():
            del self.loaded[name]
        self._identities.clear()


def _built_in(name: Pipeline) -> PipelineSpec | None:
    if name not in _BUILT_IN:
        return None
    spec: PipelineSpec = importlib.import_module(_BUILT_IN[name]).SPEC
    return spec


def _settings(value: Mapping[str, JSON]) -> Mapping[str, JSON]:
    return dict(as_json(dict(value)))


def _template(value: Sources) -> Sources:
    files, command, commands = value
    return dict(files), str(command), tuple(commands)


def _names(value: Collection[str]) -> frozenset[str]:
    if isinstance(value, str):
        raise TypeError("it must be a collection of names")
    return frozenset(value)


# Conversions of what a plug-in's functions return, so that a wrong type is an error of the plug-in.
_CHECKS: Mapping[str, plugins.Check] = {
    "settings": _settings,
    "template": _template,
    "programs": lambda value: set(_names(value)),
    "unread": list,
    "installs": lambda value: None if value is None else _names(value),
}


PIPELINES = Registry()
