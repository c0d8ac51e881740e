"""The cluster's jobs and settings, and what they download."""
