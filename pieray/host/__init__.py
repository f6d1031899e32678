"""What an InferletActor holds: the handlers behind the WIT, one instance per inferlet, no Ray."""
