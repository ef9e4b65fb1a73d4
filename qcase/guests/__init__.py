"""Guests, which are booted: root filesystem, kernel, initramfs, packages."""
