// Package testcontainers tests plyd with testcontainers-go, as the test suites of other projects use it: PostgreSQL starts from an image, waits are by log,
// by port and by query, and a reaper removes what a killed test leaves. It is a module of its own; test/setup/clients builds the tests and the reaper, and a
// story of test/e2e runs them against its plyd.
package testcontainers
