"""An InferletActor's way to the Broker: messages between inferlets, and the store."""
