"""What the teachers label: depth and classes, the scale gate, the manifest builder."""
