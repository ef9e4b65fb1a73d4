"""One step in one image, confined. Knows Docker's API and nothing of cases."""
