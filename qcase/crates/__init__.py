"""Crates of Rust: manifests, registries, git sources, and the cache of downloads."""
