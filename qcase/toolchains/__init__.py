"""Container images that builds run in: recipe, identity, lock."""
