"""The engine under all scenarios."""
