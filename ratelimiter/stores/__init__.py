"""Where tallies are kept."""
