"""Station 4, methods: each owns its options, networks and losses, in a folder of its own."""
