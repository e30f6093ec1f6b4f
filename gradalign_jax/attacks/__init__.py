"""Attacks, one per file: `pgd.make`."""
