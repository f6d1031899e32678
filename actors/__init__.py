"""The Ray actors: thin shells, one per file, around plain classes of pieray."""
