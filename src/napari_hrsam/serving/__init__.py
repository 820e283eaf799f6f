"""Encoding for other machines."""
