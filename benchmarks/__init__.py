"""Speed, memory and accuracy: each script prints a table."""
