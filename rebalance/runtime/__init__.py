"""Tools: devices, processes that work together, random draws, threads, progress."""
