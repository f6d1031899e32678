"""Grammars: which tokens may come next.  Compiled by llguidance, off the step loop, cached per tenant."""
