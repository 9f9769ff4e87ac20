"""What a worker knows besides its prompt: files and folders that are put before it, and that it may write."""
