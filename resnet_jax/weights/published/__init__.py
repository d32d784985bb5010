"""Published weights: tags, licences, downloads, and timm's configuration files."""
