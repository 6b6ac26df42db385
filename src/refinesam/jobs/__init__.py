"""From a folder of images to a data set: many images in several processes or machines, resumable, and its formats."""
