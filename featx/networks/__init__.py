"""Networks: a name becomes a pretrained network, and the network becomes a function of its layers."""
