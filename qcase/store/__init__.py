"""Content-addressed entries and named file sets; locks; collection."""
