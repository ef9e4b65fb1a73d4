"""Packages of a guest: lock, repositories, downloads, and the step that fetches."""
