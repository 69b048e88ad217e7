"""Fine-tuning: rates per layer, augmentation, the loop and its checkpoints."""
