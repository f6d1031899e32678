"""An inferlet's KV memory: page handles, the frames behind them, copy-on-write, and how their content came to be."""
