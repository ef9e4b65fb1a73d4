"""Projects of others, built and tested as they are: see `qcase.toml`."""
