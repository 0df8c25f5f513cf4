"""`kata-gpu-kbs`: command line of the relying party."""
