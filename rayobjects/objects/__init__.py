"""Layer 3: what a durable object is and how its calls run. Never imports Ray."""
