"""The dynamic orchestrator: a model that plans, rounds of tasks, and what is concluded from them."""
