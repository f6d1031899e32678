"""Programs over HTTP: runs of inferlets with arguments of their own, their events, messages and files."""
