"""The table of the pipelines that build something from a folder of sources."""

from __future__ import annotations

from collections.abc import Mapping

from qcase.model import Pipeline
from qcase.pipelines import Craft, c, python, rust, sh

CRAFTS: Mapping[Pipeline, Craft] = {
    Pipeline.C: c.CRAFT,
    Pipeline.PYTHON: python.CRAFT,
    Pipeline.SH: sh.CRAFT,
    Pipeline.RUST: rust.CRAFT,
}
