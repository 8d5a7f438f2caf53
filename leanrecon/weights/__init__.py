"""Published weights: which are needed, where they are, how they are downloaded, and what their files hold."""
