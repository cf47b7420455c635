"""Tasks, threads and waiting: everything that trio runs."""
