// Package conntrack keeps the flows of the packet path (bpf.MapConntrack) in order: the programs write them, and remove
// nothing.
//
// The [Collector] removes flows that have ended, and flows of UDP whose backend serves no more. The [Handover] leaves flows to the
// stack that another service proxy began, until netfilter forgets them. [Table.List], [Table.Count] and [Table.Flush] are for people.
//
// # What belongs together
//
// A client's flow to a backend is a pair of entries, one for each direction; packets of either note themselves in both. If the
// backend is elsewhere, there is an entry that marks packets to it for masquerade, and becomes half of a second pair when the
// first packet gets its source. That pair sees the same packets, but cannot tell whether the backend has answered, and its
// marker sees no packets at all. So it is never judged by itself while the client's pair is there: both go together
// (struct flow in bpf/lib/conntrack_maps.h).
//
// # Races
//
// Programs may note a packet while its flow is removed. Entries are looked up again right before that, and stay if they
// have noted a packet since they were read. What remains is the moment between this look and the removal. A packet that comes
// then finds its flow removed, as if it had come a moment later: the flow had been silent for all of its timeout, or
// was to go whatever it did. It may restore the half that was removed first from the one that is about to be (restore_partner in
// bpf/lib/conntrack.h). That is the half for packets out, as the other one would revive the flow; alone it leads nothing in, and
// expires by its own timeout.
//
// # What it costs
//
// On a small virtual machine (bench_test.go), a pass reads an entry in 0.4 µs, in batches (Linux 5.6; 4 µs one by one), and removes
// a flow in 13. The pause after it is 50 times as long, so passes take 2% of a processor at most. Only those for endpoints of UDP
// that went come sooner, as a client with a fixed port must reach another backend within a second; they come for Services with
// frontends for clients outside, not more often than twice a second.
package conntrack
