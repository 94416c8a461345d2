"""Ray Serve classes: thin shells around the service and the engine."""
