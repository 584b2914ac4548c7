// Package boot has what is tested in a system that is booted several times with one disk: firsthop installed before, its
// unit ordered by the system's own systemd, and the power cut. make test-boot runs each test in the boot that it is for,
// see Stages in package vm; elsewhere they skip themselves.
package boot
