"""The formats of annotations that other tools read, each from the rows of a job."""
