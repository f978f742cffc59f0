"""A network of made-up workers in virtual time, around the decisions that the real one makes."""
