"""Ray underneath: clusters joined and found, calls with deadlines, what `pieray up` remembers."""
