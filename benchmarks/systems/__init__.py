"""The systems that are compared: each does the same work with the code of ``benchmarks.work``."""
