"""Readers of the results of tests inside a command: one for each dialect."""
