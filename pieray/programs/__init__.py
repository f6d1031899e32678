"""What may be launched: sources, manifests, capabilities, limits, and the registry of what is installed."""
