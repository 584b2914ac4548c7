//go:build race

package oracle

// defaultCases are fewer with the race detector, which makes everything ten times as slow.
const defaultCases = 10_000
