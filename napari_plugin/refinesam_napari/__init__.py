"""refinesam in napari: click to mask while you look."""
