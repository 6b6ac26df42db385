"""refinesam in Label Studio: pre-annotations that arrive, smart tools that answer."""
