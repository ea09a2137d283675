"""Layer 5: the gateway on Ray Serve."""
