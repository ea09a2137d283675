"""Layer 4: hosts, placement, channels and the client, on Ray."""
