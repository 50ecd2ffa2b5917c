"""Campaigns: one scenario under every combination of some factors' levels, several times, in random order."""
