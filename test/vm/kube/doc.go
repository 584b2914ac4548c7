// Package kube gives a system in a virtual machine a real API server, with etcd, and Services that tests make in it.
//
// The programs are put at Programs (make vm-kube), the units in the directory units below /run/systemd/system. They do
// nothing before a test has called [Prepare], which is to be once on a disk: what is in the cluster then stays from one boot
// to the next. Everything is on one machine and one network, the dummy interface of the stand-ins: API server, backends
// and node have the address 192.0.2.10.
package kube
