// Package installer tests package bootstrap/cluster with a real API server. No kubelet runs: nodes, the DaemonSet
// controller and what pods do are played (player_test.go).
package installer
