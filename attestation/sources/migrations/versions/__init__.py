"""One step of the schema each, oldest first; a released step is never changed."""
