"""Foreign HTTP dialects over one service: each reads a body into NewParams and writes runs and errors
its own way. Pure."""
