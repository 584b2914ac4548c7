// Package writer keeps the NAT table as the runtime wants it.
//
// It takes what changes of Services (Set), and writes the difference to what the
// table holds (Flush). Between the two there is one queue: which ports may not be
// in the table as they are wanted (plan.go). What a write has replaced is removed
// after a grace period, beside further writes (reclaimer.go).
//
// The first flush comes when everything that the runtime reads has been read
// once: it adopts what is in the table already, with its indexes, so that clients
// keep their backends and counters continue, takes over what the init stage
// seeded, and removes what no Service wants (adopt.go).
//
// The table has other writers: the init stage, which may run at any time, and
// people. The init stage's writes are noticed by the generation, which it
// raises, and all others by Verify, which compares the whole table; what
// differs is written again.
package writer
