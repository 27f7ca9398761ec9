"""Numbers that describe patches: texture, polar displacements."""
