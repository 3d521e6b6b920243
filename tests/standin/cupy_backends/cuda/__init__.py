"""Stand in for the package of the same name (see `hostgpu`)."""
