"""One module per family of networks; `featx.networks.registry` has the table of all of them."""
