"""A prepared case is booted and judged; many cases share a machine."""
