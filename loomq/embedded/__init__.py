"""Private, real Postgres and Redis-compatible servers for a project that names none of its own.

The servers come from wheels. A supervisor process, one a project, starts them with the first client and stops
them when the last one has gone; ``loomq.embedded.client`` is the door.
"""
