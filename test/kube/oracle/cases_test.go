//go:build !race

package oracle

// defaultCases take a minute on one core.
const defaultCases = 100_000
