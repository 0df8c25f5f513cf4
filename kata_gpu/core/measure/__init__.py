"""Expected launch measurements, computed from what will be launched; reference values for the broker."""
