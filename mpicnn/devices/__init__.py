"""What each rank computes on, and how fast it is."""
