"""Feature spaces: from images or captions to rows of numbers, and for some of them back to images.

``space`` says what a feature space is, ``extract`` encodes a store of images, ``first_images`` decodes predictions.
"""
