"""QEMU: arguments (pure), process, monitor, KVM."""
