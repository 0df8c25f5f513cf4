"""`kata-gpu-guest`: evidence, key and weights inside the VM. Small enough to measure."""
