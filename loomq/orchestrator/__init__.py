"""The dynamic orchestrator: what its YAML may say."""
