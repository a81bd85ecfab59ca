// Package core is the head's reactor: the whole of its decisions, without I/O, clocks,
// goroutines or locks. The shell (package head) feeds it events and performs the
// effects it gives back; the simulator (internal/sim) does the same in virtual time.
//
//	Step(now, Event) -> Output{Records, Effects}
//
// Records are facts to be journalled. They have been applied to the core's own Durable
// when Step returns; applying them again, in order, to a copy gives exactly the same
// Durable (Durable.Apply). Effects may only be performed once all records of this and
// of earlier Outputs are safe, and in order.
//
// Three layers, from the bottom: Durable (durable.go: what the journal says, changed by
// records only), the soft state (nodes.go, jobs.go, ends.go: who holds which try, as agents tell
// it), and the decisions over both (place.go, gang.go, hold.go, pools.go, why.go, clients.go).
package core

import (
	"launcher/jobs"
	"launcher/wire"
)

// Maker makes the machine of one kind of job: from its spec, or from a snapshot of an
// earlier machine of the same spec.
type Maker func(spec wire.JobSpec, snapshot []byte) (jobs.Machine, error)

// Config is what the head is started with. Durations are nanoseconds; zero means the
// default named beside it.
type Config struct {
	Cluster   string
	Nonce     string // unlike any other cluster's, also an earlier one of the same name; used for a new Durable only
	SpecPath  string
	SpecText  string
	Version   string
	HeadPID   int
	HeadHost  string
	Pools     []wire.Pool
	RecordDir string // records of jobs are RecordDir/ID
	Grace     int64  // how long an agent lives without a head; 10 min
	Machines  map[wire.Kind]Maker

	Suspect int64 // silence after which a node gets nothing new; 5 s
	Lost    int64 // silence after which its work is run again elsewhere; 15 s

	Gone   []RecCheckpoint // lost with the machine of the head before, when Term is new
	Term   uint64          // how often the head was started elsewhere from a copy of the journal
	Silent []wire.NodeID   // nodes that were not heard of for so long that they count as lost

	Roam    string        // the pool into whose allocations the head goes; "" = none
	Seat    wire.NodeID   // with Roam: the node that it is on; "" = it is at home
	Why     string        // with Roam: why it is there
	Doubted []wire.NodeID // nodes that have only a moment to be heard of

	Again bool // the cluster had gone down and is brought up anew
}

// Event is something that happened. Events are values, not pointers.
type Event interface{ event() }

// Start is the first event of every life of a head: it takes the next head epoch, and
// with a Durable that knows nodes begins recovery.
type Start struct{}

// Tick lets time pass. The shell sends one at Core.Wake at the latest.
type Tick struct{}

// AgentUp: an agent has opened its control stream and said Hello. The core answers with
// Welcome or DropAgent. A second AgentUp of a node replaces the first connection; the
// shell delivers nothing of the old one afterwards.
type AgentUp struct {
	Node  wire.NodeID
	Epoch wire.Epoch
	Hello wire.Hello
}

// AgentMsg is one message of an agent; Msg is a wire struct by value (wire.Done, ...).
type AgentMsg struct {
	Node  wire.NodeID
	Epoch wire.Epoch
	Msg   any
}

// AgentDown: the connection is gone. With Proof the node's processes are known to be
// dead (the guard's farewell, the backend, the host); else the agent may come back.
type AgentDown struct {
	Node  wire.NodeID
	Epoch wire.Epoch
	Proof bool
	Cause string
}

// ClientReq is a request of the command or an SDK; Req is a wire request struct by value
// (wire.Submit, wire.Watch, ...; all of wire/client.go but LogsRequest, which the shell
// serves from the record). Every ClientReq gets a Reply with More false, at once or later.
type ClientReq struct {
	ID  uint64
	Req any
}

// ClientGone: nobody waits for the answer any more.
type ClientGone struct{ ID uint64 }

// Alloc is what a backend made of a submission, as backends.Alloc.
type Alloc struct {
	Handle []byte
	Nodes  []wire.NodeID
}

// Submitted answers SubmitNodes.
type Submitted struct {
	Token  string
	Allocs []Alloc
	Err    error
}

// Found answers FindAllocs: tokens that are in Tokens but not in Allocs were never
// submitted.
type Found struct {
	Pool   string
	Tokens []string
	Allocs map[string][]Alloc
	Err    error
}

// Retry: what has kept nodes away may be over, because a person can be asked now or the
// broker is back: nobody waits for his next try.
type Retry struct{}

// AllocState mirrors backends.AllocState.
type AllocState uint8

const (
	AllocPending AllocState = iota
	AllocRunning
	AllocDone
	AllocFailed
	AllocLost
)

// AllocItem is the state of one allocation, as backends.Status.
type AllocItem struct {
	Handle    []byte
	State     AllocState
	Why       string
	DeadNodes []wire.NodeID
	Deadline  int64 // unix seconds
}

// AllocStatus answers QueryAllocs; the shell may also send it unasked when a backend's
// Watcher speaks. Handles that are missing keep their state.
type AllocStatus struct {
	Pool  string
	Items []AllocItem
	Err   error
}

// LogsDone: the record has all output of an ended job (answers JobLogsWanted).
type LogsDone struct{ Job wire.JobID }

// MoveFailed answers a MoveHead that came to nothing: the head is where it was.
type MoveFailed struct {
	Node wire.NodeID
	Err  error
}

// SeatLeaves: the head has to leave the node that it is on.
type SeatLeaves struct{ Why string }

func (Start) event()       {}
func (Tick) event()        {}
func (AgentUp) event()     {}
func (AgentMsg) event()    {}
func (AgentDown) event()   {}
func (ClientReq) event()   {}
func (ClientGone) event()  {}
func (Submitted) event()   {}
func (Found) event()       {}
func (Retry) event()       {}
func (AllocStatus) event() {}
func (LogsDone) event()    {}
func (MoveFailed) event()  {}
func (SeatLeaves) event()  {}

// Effect is something to do.
type Effect interface{ effect() }

// SendAgent sends Msg, a wire struct by value, as message Typ on the control stream of
// the node's current connection; when there is none any more it is dropped.
type SendAgent struct {
	Node  wire.NodeID
	Epoch wire.Epoch
	Typ   uint16
	Msg   any
}

// DropAgent ends the node's connection after telling it Err.
type DropAgent struct {
	Node  wire.NodeID
	Epoch wire.Epoch
	Err   error
}

// Reply answers a ClientReq with Resp, the struct that wire/client.go names (by value),
// or Err. With More, further replies follow.
type Reply struct {
	ID   uint64
	Resp any
	Err  error
	More bool
}

// SubmitNodes asks the broker for nodes; the answer is Submitted.
type SubmitNodes struct {
	Pool   string
	Token  string
	Nodes  []wire.NodeID
	Epochs []wire.Epoch
	Places []string // where, of pools that are lists of machines
	After  [][]byte // allocations in whose place these nodes come
	Within int64    // they are of no use for longer; 0 = any time
}

// FindAllocs looks up submissions whose answer a dead head never wrote down; the answer
// is Found.
type FindAllocs struct {
	Pool   string
	Tokens []string
}

// QueryAllocs asks for the state of allocations; the answer is AllocStatus.
type QueryAllocs struct {
	Pool    string
	Handles [][]byte
}

// CancelAllocs ends allocations; no answer, the core queries them.
type CancelAllocs struct {
	Pool    string
	Handles [][]byte
	Waiting bool // only those that have not begun
}

// JobChanged: something in the job's info changed. Ended is set once per life of the
// head when the job is over: the shell writes its final info and table to the record.
type JobChanged struct {
	Job   wire.JobID
	Ended bool
}

// LogPart is a node's spool of one job: the record is to have it up to End.
type LogPart struct {
	Node  wire.NodeID
	Epoch wire.Epoch
	End   int64
}

// JobLogsWanted: the job is over and its output is complete once the record has all
// Parts; the shell answers LogsDone. It may come again with fewer parts, when a node is
// lost whose output will never come.
type JobLogsWanted struct {
	Job   wire.JobID
	Parts []LogPart
}

// DeleteCheckpoints removes checkpoint directories that are not kept any more.
type DeleteCheckpoints struct {
	Job   wire.JobID
	Paths []string
}

// TaskOver: a task of a job with outputs is over, and by which attempt: what that one wrote
// counts, and of no other.
type TaskOver struct {
	Task    wire.Task
	Attempt wire.Attempt
}

// ConfigChanged: an Update was applied; the shell rewrites head.config and spec.toml.
type ConfigChanged struct {
	Pools    []wire.Pool
	SpecText string
	SpecPath string
}

// Replaced: a head of a newer epoch has been heard of; this one ends.
type Replaced struct{ Err error }

// MoveHead has a head go on on another node, or with "" at home. When it works, nothing
// follows it.
type MoveHead struct {
	Node wire.NodeID
	Why  string
}

// CloseDown: the cluster is down, everything is given back; the head ends.
type CloseDown struct {
	Left []string // whose end was not confirmed, for people
}

func (SendAgent) effect()         {}
func (DropAgent) effect()         {}
func (Reply) effect()             {}
func (SubmitNodes) effect()       {}
func (FindAllocs) effect()        {}
func (QueryAllocs) effect()       {}
func (CancelAllocs) effect()      {}
func (JobChanged) effect()        {}
func (JobLogsWanted) effect()     {}
func (DeleteCheckpoints) effect() {}
func (TaskOver) effect()          {}
func (ConfigChanged) effect()     {}
func (Replaced) effect()          {}
func (MoveHead) effect()          {}
func (CloseDown) effect()         {}

// Output is what a Step gives back.
type Output struct {
	Records []Record
	Effects []Effect
}
