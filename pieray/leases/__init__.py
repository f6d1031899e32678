"""The plain heart of a ResourceManager: who holds which KV page, who waits for one, who gives one up."""
