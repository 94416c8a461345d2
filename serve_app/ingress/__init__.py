"""The HTTP surface: a plain Starlette application over `service.ImageService`. No Ray, no torch."""
