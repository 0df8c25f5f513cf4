"""Everything that a cluster admin applies: one set of objects, rendered for kustomize, Helm and `install`."""
