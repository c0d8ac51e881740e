"""The cluster's jobs, settings and downloads."""
