"""featx over HTTP: features, classes and nearest images of what is sent."""
