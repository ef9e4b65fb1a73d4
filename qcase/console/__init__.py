"""Bytes and times in, ruling out. No I/O, no clock."""
