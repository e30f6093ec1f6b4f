"""Attacks, one per file: `pgd.make`, `square.make`, `cw.make`; `ball` holds their norms, `losses` what they raise."""
