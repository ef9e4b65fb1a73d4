"""Folders to cases; names to cases."""
