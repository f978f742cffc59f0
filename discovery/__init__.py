"""The discovery service: matches foremen with workers and keeps the books."""
