"""The doctor: what is well, what is not, and what repairs it."""
