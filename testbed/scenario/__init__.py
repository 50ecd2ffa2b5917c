"""Scenarios: steps as data, run in order on a cluster of their own; what they measure fills a run folder."""
