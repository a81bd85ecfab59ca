// Package collectives lets the ranks of a job combine vectors: all-reduce,
// reduce-scatter, all-gather, broadcast, reduce and barrier.
//
// The ranks of a node do the work themselves, in memory they share; the node's agent
// makes that memory (Node), carries what travels between nodes, and tells the ranks
// when one of them is gone. docs/collectives.md is the normative description of the
// memory for other languages.
//
//	comm, err := launcher.Collective(ctx)   // in a rank
//	grad, err := collectives.Empty[float32](comm, n)
//	err = collectives.AllReduce(comm, grad, collectives.Mean)
//
// Every rank must call the same operations in the same order, from one goroutine at a
// time. The result has the same bits on every rank, and the same from run to run for
// the same placement: within a node each element is combined in rank order; between
// nodes in rank order for small vectors and in ring order, fixed by the element's place
// and the number of nodes, for large ones. A half type is summed in float32 over all
// ranks of a node and rounded once there.
//
// Sub-packages: plan (who does what), reduce (the arithmetic), transport (between
// nodes), bench (how fast it is beside what the machine can do).
package collectives
