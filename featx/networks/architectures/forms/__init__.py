"""Other forms of networks, named by an ending: NET-dense, NET-flow."""
