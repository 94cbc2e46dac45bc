"""Contract suites: prove that a provider keeps the promises of its capability, by subclassing one class in a test."""
