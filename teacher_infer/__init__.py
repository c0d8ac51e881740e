"""Teacher labels: depth and classes, the check of the depth teacher, and the manifest builder."""
