"""What tests and benchmarks share, and which imports neither: real servers, and damaged runs."""
