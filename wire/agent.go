package wire

import (
	"strconv"

	"launcher/internal/errs"
)

// Messages between head and agent travel on the control stream of their session, one
// frame each. Delivery is in order and at most once per connection; a new connection
// starts with Hello and Welcome, which reconcile both sides (see docs/protocol.md).
//
// Who owns what: the head decides which agent a task attempt belongs to and owns all
// durable facts; the agent owns its node's resources, its processes, and every
// completion until the head has acknowledged it (Ack), that is, has it on disk.
const (
	// agent -> head
	MsgHello    uint16 = 0x0101
	MsgDone     uint16 = 0x0102
	MsgRunning  uint16 = 0x0103
	MsgReturned uint16 = 0x0104
	MsgReserved uint16 = 0x0105
	MsgReport   uint16 = 0x0106
	MsgBeat     uint16 = 0x0107
	MsgGangGone uint16 = 0x0108
	MsgLeaving  uint16 = 0x0109
	MsgTold     uint16 = 0x010a
	// head -> agent
	MsgWelcome    uint16 = 0x0201
	MsgJob        uint16 = 0x0202
	MsgAssign     uint16 = 0x0203
	MsgWithdraw   uint16 = 0x0204
	MsgStop       uint16 = 0x0205
	MsgReserve    uint16 = 0x0206
	MsgStart      uint16 = 0x0207
	MsgRelease    uint16 = 0x0208
	MsgAck        uint16 = 0x0209
	MsgAdvice     uint16 = 0x020a
	MsgForget     uint16 = 0x020b
	MsgShutdown   uint16 = 0x020c
	MsgCheckpoint uint16 = 0x020d
	MsgAsk        uint16 = 0x020e
	MsgNodeEnds   uint16 = 0x021c
)

// Hello opens a connection. It lists everything the agent still answers for, so that a
// head that lost its soft state (or restarted) can rebuild it. An attempt that the head
// gave to this agent and that is in none of Tries, Gangs or Unacked never arrived: the
// head gives it again with the same attempt number.
type Hello struct {
	Node      NodeID
	Epoch     Epoch // life of the node's supervisor
	Restarts  uint32
	Pool      string
	Token     string // submission this node came from
	Version   string
	Host      string
	Addr      string // host:port of the agent's own listener
	Total     Resources
	GPUs      []GPU
	Labels    map[string]string
	Deadline  int64 // unix seconds when the allocation ends; 0 = never
	HeadEpoch Epoch // of the head it last spoke to
	Tries     []TryState
	Gangs     []GangState
	Unacked   Done  // completions not yet acknowledged; Seq is the newest
	Clock     int64 // the agent's wall clock in unix nanoseconds
	PID       int
	Python    string // path and version of the node's python, "" when none or < 3.9
	Why       string // as in Beat
	Bundles   []BundleID
	Programs  Programs
	Topology  Topology
	Addrs     []string // where it may be reached, beside Addr
	Route     string   // how it reaches the head: direct | ssh | slurm
	Others    int64    // as in Beat
	Reports   []Report // those that the head may still need, in order; they come before Unacked
}

// GPU is one device of a node.
type GPU struct {
	UUID     string
	Name     string
	Memory   int64
	Busy     bool   // others use it: not offered
	Index    int32  // the driver's number; slices have their GPU's
	Bus      string // PCI address, 0000:07:00.0; "" = unknown
	Declared bool   // the pool or a batch system says that it is there, detection does not: programs know it by number
	By       string // with Busy: who has it
}

// Visible is what CUDA_VISIBLE_DEVICES calls the device.
func (g GPU) Visible() string {
	if g.Declared {
		return strconv.Itoa(int(g.Index))
	}
	return g.UUID
}

// TryState is a try that an agent holds: queued (not started) or running.
type TryState struct {
	Try     Try
	Running bool
	Started int64 // unix nanoseconds; 0 when queued
}

// GangState is a gang's part on an agent.
type GangState struct {
	Gang    Try
	Started bool // false: only reserved
	First   uint32
	Count   uint32
	Live    uint32 // ranks still running
}

// Welcome answers Hello.
type Welcome struct {
	Cluster   string
	HeadEpoch Epoch
	Grace     int64 // how long an agent lives on without a head, nanoseconds
	Acked     uint64
	Drop      []Try    // tries in Hello that the head does not want any more: fenced or of an ended job
	Number    uint32   // of this life of the node, from 1; no other life of any node of the cluster ever has it. It is part of the ids of tasks and objects (docs/tasks.md)
	Addrs     []string // where the head is reached, best first
}

// Job gives an agent what it needs to run tasks of a job. It precedes the first Assign
// or Reserve of that job on each connection.
type Job struct {
	Job       JobID
	Spec      JobSpec
	Record    string   // directory of the job's record on the head's machine
	PoolEnv   []string // env, setup and python of the node's pool
	Setup     []string
	Python    string
	Container string
}

// Assign queues tries of tasks with one rank. The agent starts them in order as its
// resources allow. Items with Params or Line are given one by one; a plain array comes
// as ranges, all with attempt 1.
type Assign struct {
	Job    JobID
	Ranges []Range
	Items  []Item
}

// Item is one try with what is particular to it.
type Item struct {
	Index      uint32
	Attempt    Attempt
	Line       string   // array with each_line
	Params     []byte   // JSON object, sweep
	Command    []string // nil = the spec's
	Checkpoint string   // LAUNCHER_CHECKPOINT_IN
	Step       int64
}

// Withdraw asks for up to Max queued tries of a job back (Returned), newest first; they
// were never started.
type Withdraw struct {
	Job JobID
	Max uint32
}

// Returned gives queued tries back to the head, on Withdraw, on drain, or when the agent
// finds that it can never run them (Why).
type Returned struct {
	Job   JobID
	Tries []Try
	Why   *errs.Wire
}

// Stop ends tries: SIGTERM, Grace, SIGKILL. Queued ones are dropped and reported done
// with Code = -1, Reason set. All = the whole job.
type Stop struct {
	Job    JobID
	All    bool
	Tries  []Try
	Reason Reason
	Grace  int64
	Rank   int32  // ReasonPeer: the rank at fault, as in GangGone
	Cause  string // ReasonPeer: what the other ranks are told, as in GangGone
}

// Reserve asks an agent to keep room for Count ranks of a gang. The agent answers
// Reserved; room is kept until Start, Release, or Until (unix ns; the agent releases by
// itself, so a head that dies holds nothing).
type Reserve struct {
	Gang  Try
	Count uint32
	Until int64
}

// Reserved answers Reserve. Port is free on the node for MASTER_PORT.
type Reserved struct {
	Gang   Try
	OK     bool
	Why    string
	Port   uint16
	Addr   string // address other nodes reach this one at, for MASTER_ADDR
	Counts uint32
}

// Start starts this node's ranks of a gang whose room is reserved everywhere.
type Start struct {
	Gang       Try
	World      uint32
	Nodes      []GangNode // in rank order
	MasterAddr string
	MasterPort uint16
	Restarts   uint32 // TORCHELASTIC_RESTART_COUNT
	Item       Item   // Params, Checkpoint, ...
}

// GangNode is a node's share of a gang: ranks First .. First+Count-1.
type GangNode struct {
	Node   NodeID
	Addr   string
	First  uint32
	Count  uint32
	Number uint32 // of its life
}

// Release gives a reservation back that will not be started.
type Release struct{ Gang Try }

// GangGone says that a node's part of a gang cannot go on (a rank died, an agent lost
// its ring). The head stops the rest and decides about a restart.
type GangGone struct {
	Gang  Try
	Rank  int32 // the rank at fault; -1 when it is the node
	Cause string
	Never bool // none of its ranks was started, and none will be reported ended
}

// Done reports ended processes. Seq counts every item ever reported by this node epoch,
// so Items are numbers Seq-len(Items)+1 .. Seq. The agent sends an item again on each
// new connection until it is acknowledged; the head ignores numbers it has.
type Done struct {
	Seq   uint64
	Items []Ended
}

// Ended is the end of one process of a try. All ranks of a try are reported.
type Ended struct {
	Proc    Proc
	Code    int32 // exit code; 128+n when killed by signal n; 126, 127 as in a shell; -1 never started
	Signal  int32
	Reason  Reason
	Started int64 // unix nanoseconds
	Ended   int64
	Err     *errs.Wire // why it could not start, or what launcher found
	RSS     int64      // peak resident bytes
	LogEnd  int64      // length of this try's output in the node's spool
}

// Reason says why launcher ended a process, if it did.
type Reason uint8

const (
	ReasonNone      Reason = iota // it ended by itself
	ReasonCancelled               // the user
	ReasonTimeLimit
	ReasonPeer      // another rank of its gang failed
	ReasonPruned    // early termination of a trial
	ReasonLost      // its node or supervisor died
	ReasonPreempted // the node is drained
	ReasonMemory    // over its memory
	ReasonFenced
	ReasonShutdown // the cluster goes down
)

// Running says that tries started (soft: for status and time limits).
type Running struct {
	Items []TryState
}

// Report is one call of report() by a process. The head answers with Advice carrying the
// same Seq; the agent answers the process with it, or with the last advice it knows
// when the head is away. A step is committed when every rank has reported it, so the agent
// keeps a report until Advice.Before says that its step needs it no more, or the end of the
// try is acknowledged, and lists it in Hello: the next head knows nothing of it else.
type Report struct {
	Seq        uint64 // per connection
	Proc       Proc
	Step       int64
	Metrics    map[string]float64
	Checkpoint string // directory on the node that the agent has copied to the job's checkpoint place; "" = none
	Time       int64
	No         uint64 // greater than that of any earlier report of the process
}

// Advice tells a try whether to go on.
type Advice struct {
	Seq      uint64 // of the Report it answers; 0 = unasked
	Try      Try
	Leave    LeaveReason
	Deadline int64 // unix ns by which it should have left; 0 = none
	Before   int64 // reports of the try's steps below it are not needed any more
}

// NodeEnds says when a node goes away, whenever the head learns of another time. What runs
// there is told by Advice; this is what whoever asks beside that is answered.
type NodeEnds struct {
	By    int64 // unix ns by which what runs there should have left; 0 = nobody knows
	Leave LeaveReason
	Over  int64 // unix ns at which its allocation ends; 0 = nobody knows. Hello.Deadline tells the next head
}

// LeaveReason is why a program should save and leave; "" = go on.
type LeaveReason string

const (
	LeaveNo        LeaveReason = ""
	LeavePruned    LeaveReason = "pruned"
	LeaveDeadline  LeaveReason = "deadline"
	LeavePreempted LeaveReason = "preempted"
	LeaveResize    LeaveReason = "resize"
)

// Checkpoint tells the agents of a gang that the checkpoint of Step is committed
// (journalled), and which older ones to delete.
type Checkpoint struct {
	Try    Try
	Step   int64
	Path   string
	Delete []string
}

// Ack: the head has every completion up to Seq on disk, and logs of jobs up to the
// given offsets.
type Ack struct{ Seq uint64 }

// Forget: the job is over and its logs are in the record; drop what is kept of it.
type Forget struct{ Job JobID }

// Shutdown ends the agent: stop all work, remove files, leave. Drain lets running
// tries end first (no new ones).
type Shutdown struct {
	Drain bool
	Grace int64
	Why   string
}

// Beat is sent each second.
type Beat struct {
	Free    Resources
	Queued  uint32
	Running uint32
	Load1   float64
	MemFree int64
	GPUs    []GPU
	Python  string       // as in Hello, once it is known
	Held    []HeldOutput // by job
	Why     string       // what is wrong with the node although it is up
	Jobs    []JobUse     // what jobs have of the node, by job
	Tasks   Resources    // what SDK tasks have of it, leases that are not used included, less the cores that waiting processes lend
	Lasting Resources    // what actors and bundles of placement groups have of it
	Rate    int64        // bytes a second, sent and received, in its busiest second of the last minute
	Others  int64        // cores that others keep busy and that are not offered, in Units
	Needed  bool         // it has values that others refer to and that would be gone with it
	Relays  []string     // how it reaches nodes that it cannot reach itself: NODE via NODE
}

// JobUse is what a job has of a node.
type JobUse struct {
	Job      string
	Priority int
	Tasks    Resources // its tasks and actors, outside of placement groups
	Own      Resources // its own processes
	Lent     Resources // of leases of a job with limits: what tasks that wait have lent
}

// HeldOutput says that the output of a job cannot be written on a node: its processes
// wait in write.
type HeldOutput struct {
	Job JobID
	Why string
}

// Leaving says that a node goes: with Dead it is the supervisor's or agent's farewell, proof
// that the node's work is dead; else it has been told to leave and work has until By.
type Leaving struct {
	Why  string
	Dead bool  // all its processes are gone
	By   int64 // unix ns by the node's clock; 0 = nobody has said
}

// Ask passes a client's question (Query) on to an agent, who answers it with a Told of
// the same ID within QueryBound. Neither side's reactor knows of it.
type Ask struct {
	ID   uint64
	What string
	Args []byte
}

// Told answers Ask.
type Told struct {
	ID   uint64
	JSON []byte
	Err  *errs.Wire
}

// Bounds of a question to agents: how long each has to answer (nanoseconds), how long
// the answer of one may be, and those of all together.
const (
	QueryBound = 3_000_000_000
	MaxTold    = 8 << 20
	MaxAnswer  = 15 << 20
)
