"""Images: reference -> registry or archive -> content store -> verified layers.

`store.ImageStore` is what a run needs and imports nothing heavy; `pull.pull` and `archive.load` bring images in.
"""
