"""The HTTP door: OpenAI's API over an engine.  Each request is an inferlet; this room turns one into the other."""
