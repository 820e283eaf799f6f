"""Docks made from functions with typed parameters: export, verify, encode ahead."""
