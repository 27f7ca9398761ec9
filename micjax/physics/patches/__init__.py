"""Images of crystals seen patch by patch: local spectra, phases and grains, descriptors."""
