"""Makes pie-tiny, the small trained model that ships inside pieray.

Order of reading: `words` and `grammar` (raw material), `tasks` (the items),
`tokenizer`, `batches`, `model`, `muon`, `train`, `export`, `evaluate`, `card`.
"""
