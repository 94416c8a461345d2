"""Developer tools of flux-serve; nothing here is imported by the served product."""
