"""A provider on this machine that speaks all three wires, for tests and for a first try without a key."""
