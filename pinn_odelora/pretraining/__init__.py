"""The pretrained network: trained at the source parameter, kept in a cache, or the user's own."""
