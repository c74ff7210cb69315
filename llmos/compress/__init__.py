"""Making models smaller, in layouts that others read too."""
