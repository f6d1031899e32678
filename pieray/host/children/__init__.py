"""Inferlets that an inferlet launches."""
