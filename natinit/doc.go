// Package natinit brings the node's NAT table and connect-time load balancer
// into the state that the init stage wants, as two transactions:
//
//	seeded, err := natinit.Seed(...)     // the API service is in the table
//	attached, err := attach.Attach(...)  // the programs run on every connect
//	… prove that a connection gets through …
//	attached.Commit(), seeded.Commit()   // or Rollback both: as before
//
// Both do nothing where everything is already so, leave alone what isn't ours,
// and may be killed at any instant: the next run completes. The caller holds
// the instance's lock.
package natinit
