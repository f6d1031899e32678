"""HTTP for inferlets: where they may go (`policy`, `addresses`), and how they get there (`client`)."""
