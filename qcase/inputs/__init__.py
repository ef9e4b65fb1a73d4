"""Inputs of cases: the files that each depends on, changes of them, trust in them, and what lint says."""
