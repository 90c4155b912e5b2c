"""What every measurement of the whole engine shares: running it, watching it, judging it, and the report."""
