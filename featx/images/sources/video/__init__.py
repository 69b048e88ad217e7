"""Videos as images: single frames, or stacks of optical flow."""
