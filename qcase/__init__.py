"""qcase runs the test cases of an operating system in QEMU, hermetically."""

__version__ = "0.1.0"
