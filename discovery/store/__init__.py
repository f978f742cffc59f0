"""The store: the only door to Redis. Every key is documented above the Lua that writes it."""
