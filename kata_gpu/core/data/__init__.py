"""Data tables of the core, read once by the module that owns each."""
