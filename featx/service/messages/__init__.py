"""What comes in and goes out: images in bodies, features in answers, errors as problems."""
