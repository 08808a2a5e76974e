"""Metrics and, later, drift monitoring: names, units and labels of everything that is counted."""
