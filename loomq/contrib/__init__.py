"""Processors that ship with loomq: reached by dotted name from YAML, never imported by the house."""
