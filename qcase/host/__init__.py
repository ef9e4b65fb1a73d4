"""The operating system under us: processes, locks, files."""
