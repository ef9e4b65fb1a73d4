"""Pipelines from sources to an overlay: one module for each pipeline, and their shared parts."""
