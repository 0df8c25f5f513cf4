"""A real kernel in QEMU: the same test bodies that run on the simulated kernel. `make lab-short`, `make lab`."""
