"""Examples on the embedded data."""
