"""Real servers for tests, each on a free loopback port, each gone when its test run is."""
