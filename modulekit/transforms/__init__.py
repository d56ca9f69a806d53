"""JAX transforms over variables."""
