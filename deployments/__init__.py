"""Ray Serve recipes: short classes that wire parts of llmos together. They travel in the wheel."""
