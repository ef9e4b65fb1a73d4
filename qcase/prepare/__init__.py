"""From a case to an image: keys, hit or build, inject. Owns what a run shares."""
