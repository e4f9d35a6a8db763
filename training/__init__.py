"""Scripts that train and package the weights shipped in ``mpsearch/zoo/weights``."""
