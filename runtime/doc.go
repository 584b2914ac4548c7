// Package runtime is the long-running component. It takes over from what the
// init stage has made, serves every Service, and keeps serving whatever becomes
// of the API servers, and whatever becomes of itself: programs and table live
// in the kernel.
//
// The name shadows the standard library's: don't import both in one file.
//
//	watch        objects of the API            ┐
//	hostaddrs    addresses of the host         ├─> engine: services.Table ─> writer ─> NAT table
//	apihealth    which API servers are alive   ┘
package runtime
