"""Measurements: `python -m bench NAME ...` runs one, without arguments lists them."""
