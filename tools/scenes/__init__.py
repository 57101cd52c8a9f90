"""Data for the demo and for PASCAL VOC: digit scenes, made here, and SBD's masks, converted."""
