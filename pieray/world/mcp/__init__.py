"""MCP servers: the operator's, run by an InferletActor, and the client's, reached over its connection."""
