// Package vm runs tests in virtual machines: what one machine's kernel cannot show. `make test-vm` does so.
//
// A kernel is a line in kernels.go, a suite of tests a line in suites.go. A suite is an ordinary package of Go tests: it
// is compiled into a static binary and run, as root, by a PID 1 that is ours (test/vm/init). There is no other user
// space, so a kernel needs no distribution around it, and no modules if it has built in what the tests use:
//
//	make test-vm                                    every kernel
//	make test-vm VM=5.10,6.1 SUITE=natinit          some of it
//	make test-vm VM_KERNEL=/boot/bzImage            a kernel of one's own, as 5.3 or RHEL 8's
//	make test-vm VM_KERNEL=… VM_MODULES=/lib/modules/5.3.0
//
// A system is a line in systems.go: a distribution with its own systemd, on a disk that is kept from one boot to the
// next. A path is a chain of such boots (Paths), and what is tested in each is a line of it, an ordinary Go test of package
// boot. Nothing of the tests is on the disk: PID 1 of the initramfs adds it below /run, units included.
//
//	make test-boot                                  every system
//	make test-boot SYSTEM=debian12 BOOT=life        one of them, on one path
//
// make test-vm also boots every system on its short paths. docs/testing.md says how to add a kernel and a test.
//
// Everything fetched is kept in .cache/vm, and so are logs: .cache/vm/logs/KERNEL/SUITE.log has a suite's output,
// .cache/vm/logs/SYSTEM/PATH/STAGE.log that of a stage, and console-*.log beside them what the kernel said.
//
//	debian   packages of any Debian release, without installing them
//	qemu     boots a machine, ends it when it hangs
//	wire     what guest and host say to each other
//	init     the guest's PID 1
//	inside   tests that are for virtual machines only: they use the machine's own root cgroup and /sys/fs/bpf
//	boot     tests that are for systems with a systemd only, and the stand-ins that they need there
//	run      the command behind make test-vm and make test-boot
package vm
