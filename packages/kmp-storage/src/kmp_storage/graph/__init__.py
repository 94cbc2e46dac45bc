"""What all graph stores share: how node and edge classes become what is stored, and what is a key."""
