"""flux-serve: self-hosted, metered, OpenAI-compatible image generation on Ray Serve.

Importing this package imports neither ray, torch nor sqlalchemy, so the command line starts fast.
"""

__version__ = "0.1.0"
