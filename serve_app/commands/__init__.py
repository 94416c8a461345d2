"""The commands of `flux-serve`, one module a noun. Modules import heavy things inside functions."""
