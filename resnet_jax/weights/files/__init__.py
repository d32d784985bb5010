"""Inside the formats: zip directories, pickles, checksums. `weights.formats` is the door to it."""
