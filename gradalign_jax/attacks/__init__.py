"""Attacks, one per file, each with a constructor `make`, or `make_targeted` for a search per wrong class.

    pgd          projected gradient descent, L∞ and L2
    apgd         Auto-PGD, L∞ and L2, untargeted and targeted
    fab          FAB-T, the nearest misclassified image, L∞ and L2
    square       Square Attack in L∞; `square_l2` in L2
    cw           Carlini and Wagner's attack in L2
    spatial      rotation and translation; flow of the pixels

`ball` holds the norms, `losses` the losses that attacks maximize, `targets` the classes of targeted attacks.
"""
