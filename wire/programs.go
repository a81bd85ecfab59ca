package wire

// Jobs of programs live on several nodes: a job has drivers on some, and on others what
// its tasks have made (actors, objects, placement groups). Only the head sees when the last
// driver is gone: each agent tells it of its own, and is told when what it has left of a job
// is nobody's any more.
const (
	MsgPrograms uint16 = 0x0118 // agent -> head
	MsgJobsOver uint16 = 0x0218 // head -> agent
)

// Programs is what a node has of jobs; it replaces what it told before. Jobs are keys, which
// are the cluster's: of a job that was submitted its number, of a program that was started
// by hand one that no other has.
type Programs struct {
	Jobs []string // those that live here: they have drivers, or detached actors
	Left []string // those that only have something left here
	Held []string // and those of which other nodes' parts are in conversation with that
}

// JobsOver: nothing of these jobs lives on any node. Of those in Held nothing ever will:
// they end though nodes hold each other's parts of them.
type JobsOver struct{ Jobs, Held []string }
