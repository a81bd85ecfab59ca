// Package agent is a node's agent: the shell around its reactor (agent/core). It starts
// processes through the supervisor, keeps the session with the head, ships output to
// the cluster's record, serves the programs of the node on agent.sock, owns the groups
// of collectives, and takes what other agents send on its one TCP port.
//
// One goroutine (loop) owns the core: it takes events in bursts, writes the records of
// a burst to the state journal, a memory file that the supervisor holds, and then
// performs the effects. Everything slow is somebody else's goroutine and comes back as
// an event. A killed agent is started again by the supervisor and finds its journal,
// its sockets, its pipes and its identity there; see Main.
package agent
