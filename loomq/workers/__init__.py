"""How a worker runs: what its YAML may say, the protocols that its code fills, and the lifecycle of a task."""
