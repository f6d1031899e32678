"""An inferlet's way to its device: commands, plans, tickets, and the pages that they use."""
