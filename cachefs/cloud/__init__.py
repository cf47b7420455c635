"""What a cloud manager is made of: where its bytes are here, where they are uploaded to, and its dumps."""
