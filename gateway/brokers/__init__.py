"""The stores a node can stand on, by URL scheme."""
