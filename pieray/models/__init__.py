"""Models: configuration, weights, the native decoder, sampling and tokenising.

`tokenizer` is free of torch, so that light processes can import it; the rest computes with torch.
"""
