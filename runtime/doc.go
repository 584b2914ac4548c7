// Package runtime is the long-running component. It takes over from what the
// init stage has made, serves every Service, and keeps serving whatever becomes
// of the API servers, and whatever becomes of itself: programs and table live
// in the kernel.
//
// This package creates the components (wire.go), tells them what happens
// (subscribe.go) and runs them (run.go). What they do together is in package sync.
//
// The name shadows the standard library's: don't import both in one file.
package runtime
