"""Station 2, planning: which classes get how many images, from which sources, split into how many modalities."""
