"""Root key providers: where the key lives that wraps the data keys of the store."""
