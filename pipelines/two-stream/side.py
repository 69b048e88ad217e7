"""The side of the fields of flow that NET-flow takes, in pixels."""

import sys

import featx

print(featx.list_layers(f"{sys.argv[1]}-flow").side // 3)
