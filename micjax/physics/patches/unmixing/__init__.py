"""Abundances and end members: factorisations, turned templates, how many there are and how good."""
