"""Sizes at which a ridge changes how it works, and what its threads take: all that its plan is computed from."""

from leanrecon.stores.layout import PANEL

FLOAT64_ORDER = 3072
"""Gram matrices up to this order are formed and factored in float64, which costs them a second or two."""

TEST_ROWS = 1024
"""Test rows whose hat matrix is formed at once; more are taken in turns."""

WEIGHT_BLOCK = 512
"""Targets whose weights are formed at once."""

LOO_ROWS = 1000
"""Most train rows whose leave-one-out predictions give the moments of ``restandardize = "inductive"``."""

PROJECTIONS = 512
"""Random sums of the targets that replace them; fewer targets are used as they are."""

SUMMING = 3 * 8 * PANEL * PROJECTIONS
"""Bytes of a tile of targets, as many as there are sums: less their means, in the sums' type, and with their signs."""

SEARCH_ROWS = 1250
"""Most train rows whose eigenvectors tell where the search for the alpha of a large kernel begins."""

SEARCH_ALPHAS = 64
"""Most alphas among which the best one is searched step by step; more are cheaper by eigenvectors."""

SEARCH_PROJECTIONS = 64
"""Random projections of the targets that these rows tell it by; the errors of as many are squared at once."""

PROBES = 256
"""Random vectors that tell how leverages change with alpha: a multiple of 64."""

MEDIAN_ROWS = 1024
"""Most train rows whose distances give the width of an rbf kernel."""

CHOICE_ROWS = 1000
"""Most train rows that the form of a decoder is chosen on."""

CHOICE_NBYTES = 64_000_000
"""Bytes of float32 betas that these rows may take; 200 rows are taken in any case."""

FOLDS = 5
"""Folds of images that are held out in turn while a form is chosen."""

ONE_EACH = 20
"""Most images that are a fold each."""

FEWEST_IMAGES = 5
"""Images below which no form is chosen."""

COMPONENTS = 100
"""Principal components of the targets that forms are compared on."""

ALPHAS = 22
"""Alphas of the default grid of leave-one-out."""

MOMENTS = 12
"""Numbers of 8 bytes for each voxel while moments are taken and betas are looked at."""

WORKSPACE = 28_000_000
"""Bytes that the BLAS threads and the interpreter take for themselves: 7 to 16 MB measured on two cores."""

WARM = 12_000_000
"""Bytes of that which predictions may still take, once a fit has taken the rest."""
