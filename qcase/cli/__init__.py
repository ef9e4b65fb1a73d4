"""Commands: parse, call, print. Nothing is decided here; heavy imports live inside commands."""
