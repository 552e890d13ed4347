"""How cost grows: with keys, sizes, history, files, processes, and the store's latency."""
