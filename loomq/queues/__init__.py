"""What Celery is to loomq: the app, queue names, the broker's window, and results kept in Postgres."""
