"""Accounts, API keys and compute units: the ledger. No HTTP, no Ray."""
