"""Between an inferlet and its client: events out, messages and files in."""
