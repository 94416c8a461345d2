"""FLUX as a step engine: no Ray, no HTTP. Import from its modules: this file imports no torch."""
