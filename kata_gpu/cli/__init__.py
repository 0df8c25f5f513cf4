"""`kata-gpu`: command line of the node component."""
