"""The Ray adapter: the only part of the control module that knows Ray."""

import os

# Ray reads this when it is imported: without it, Ray replaces 127.0.0.1 by the machine's outward address, listens on
# every interface, and cannot reach a head that does not
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# also read at import: secure unless the environment says that the cluster to join knows no tokens
os.environ.setdefault("RAY_AUTH_MODE", "token")
