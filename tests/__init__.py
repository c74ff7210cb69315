"""The tests, by tier: unit (without Ray), ray (one local cluster), e2e."""
