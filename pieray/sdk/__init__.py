"""The SDKs of languages other than Python: C headers, a Rust crate, a JavaScript module."""
