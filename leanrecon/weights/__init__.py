"""Published weights: where they are, what their files hold, and how they are fetched; nothing here knows of images."""
