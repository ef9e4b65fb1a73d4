"""TOML to frozen models, all errors at once, with lines."""
