"""Schedules: what their YAML may say."""
