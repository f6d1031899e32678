"""Tensor programs: small pure functions over the named tensors of a pass, as inferlets hand them in.  No torch here."""
