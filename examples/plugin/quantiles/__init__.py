"""Quantile regression as a plug-in."""
