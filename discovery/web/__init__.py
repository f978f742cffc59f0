"""Pages for people. Programs have `discovery.api`."""
