"""A client of the HTTP API for the command line. It knows a server by its API only."""
