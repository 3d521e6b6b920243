"""Settings: described once, read from a file and from flags."""
