"""What every test shares: hypothesis without a deadline, because no test may depend on how busy the machine is."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("refinesam", deadline=None, print_blob=True)
settings.load_profile("refinesam")
