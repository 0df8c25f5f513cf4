"""A software GPU or NVSwitch over vfio-user: `-device vfio-user-pci` of QEMU 10.1 or newer shows it to a guest.

Registers and settings are those of the simulated host's chips. It has no engines and raises no interrupts: it is for
testing the host side (discovery, binding, CC mode, resets) on a laptop.
"""
