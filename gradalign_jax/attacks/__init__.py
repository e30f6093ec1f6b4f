"""Attacks, one per file: `pgd.make`, `square.make`, `cw.make`."""
