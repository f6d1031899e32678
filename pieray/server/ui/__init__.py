"""What operators look at: the engine as JSON, and the page at `/ui` that shows it."""
