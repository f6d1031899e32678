"""What a driver runs: the handle of an engine, its inferlets, and the connections under them.  Nothing of the host."""
