"""The RuntimeClasses of the toolkit: one table, rendered manifests, validation. Imports neither other package."""
