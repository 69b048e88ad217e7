"""`featx show`: what a network sees, as pictures and as the numbers behind them."""
