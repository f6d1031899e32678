"""Inferlets as WebAssembly components, run by wasmtime; see `host`."""
