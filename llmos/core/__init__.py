"""Pure decisions on frozen values: no Ray, no torch, no clock, no files. Standard library and numpy only."""
