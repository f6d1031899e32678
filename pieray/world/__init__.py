"""What programs reach outside of their engine: HTTP and MCP servers."""
