"""Pictures of scenes: ``camera`` draws what the VLA sees, ``bird`` what a person looks at."""
