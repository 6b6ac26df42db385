"""Where training images come from: folders, COCO, LVIS, SA-1B, tar shards here or elsewhere."""
