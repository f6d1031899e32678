"""OpenAI's API, with vLLM's fields: what requests ask for, and how answers are written."""
