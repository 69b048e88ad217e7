"""Networks that are not featx's own: timm's by name, and modules of the user's own."""
