"""How rayobjects compares with the plain Ray that it runs on. See docs/benchmarks.md."""
