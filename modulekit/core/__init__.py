"""The core: variables, modules, names, sharing and randomness."""
