"""One page that says what is inside features, a training or a probe."""
