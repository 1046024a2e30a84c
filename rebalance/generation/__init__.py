"""Station 6, generation: slots, the candidates each of them draws, and the images made of them."""
