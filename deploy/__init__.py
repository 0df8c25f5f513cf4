"""What is applied to a cluster and published with a release, and the programs that render, build and check it."""
