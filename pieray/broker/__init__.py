"""What inferlets share across actors: queues, topics, the key-value store.  The plain heart of the Broker actor."""
