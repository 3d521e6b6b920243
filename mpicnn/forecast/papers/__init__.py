"""The tables of the papers replayed: what they report beside what is computed or simulated here."""
