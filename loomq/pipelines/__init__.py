"""How a pipeline reads: what its YAML may say, its mappings, its graph, and the checks over all of them."""
