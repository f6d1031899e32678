"""From sources to components: one file per language, the generators of the SDKs' bindings, new projects, checks."""
