"""Measures how right every gradient is; see `__main__`."""
