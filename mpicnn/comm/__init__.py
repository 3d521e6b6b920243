"""How arrays travel between ranks."""
