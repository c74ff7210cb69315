"""Every number we claim, side by side with its reference."""
