"""One file per model family, each behind the ImageModel of `base`."""
