// Package writer keeps the NAT table as the runtime wants it.
//
// It takes what a Service's ports shall be (Set), and writes the difference to
// what the table holds (Flush). The first flush comes when everything that the
// runtime reads has been read once: it adopts what is in the table already,
// with its indexes, so that clients keep their backends and counters go on,
// takes over what the init stage seeded, and removes what nobody wants any more.
//
// The table has other writers: the init stage, which may run at any time, and
// people. The init stage's writes are noticed by the generation, which it
// raises, and all others by Verify, which compares the whole table; what
// differs is written again.
package writer
