"""Measurements, all peers side by side in one run; results carry machine, versions and a hash of the output."""
