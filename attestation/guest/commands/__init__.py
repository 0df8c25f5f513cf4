"""Commands of `kata-gpu-guest`, each imported when it runs."""
