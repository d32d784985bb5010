"""The networks: layers, blocks, `ResNet` and the table of variants. Third-party imports only."""
