"""What Postgres keeps: tables, the connection to them, and the queries, a file a noun."""
