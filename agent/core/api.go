package core

import (
	"launcher/internal/errs"
	"launcher/wire"
)

// Config is what the agent knows of its node. It is the same for every life of the
// agent on one supervisor, but for Hello.Restarts and Hello.PID.
type Config struct {
	// Hello is the part of the greeting that does not change: node, epoch, pool, token,
	// version, host, address, labels, deadline, total resources and GPUs.
	Hello wire.Hello
	// CPUs are the cores that the node may use; processes are bound to some of them.
	CPUs []int
	// Claims keeps GPUs from others on the machine; nil = there are none.
	Claims Claims
	// Grace is how long the agent lives without a head until a Welcome says otherwise.
	Grace int64
	// Binary, Socket, Cluster and Dir go into the environment of processes: the launcher
	// binary, the agent's socket, the cluster's name, the node's directory.
	Binary, Socket, Cluster, Dir string
	// Signalled: what granted the node ends it by signals, which may reach its processes too,
	// and before they reach us.
	Signalled bool
}

// Claims are this node's locks on the GPUs of its machine, on which others' clusters may
// be, too. Its methods are called from within those of Core and must not wait.
type Claims interface {
	// Claim takes a GPU, or has it; false = another has it, who gives it back some time.
	Claim(uuid string) bool
	// Drop: nothing uses it any more.
	Drop(uuid string)
}

// Event is something that happened.
type Event interface{ event() }

// Events.
type (
	// HeadUp: a session with the head is up and its control stream open. The core greets.
	// Addr, if set, is where others reach this node, as that session tells.
	HeadUp struct {
		Addr  string
		Addrs []string // others at which the node may be reached
		Route string   // how the head is reached: direct | ssh | slurm
	}
	// HeadDown: it is gone. Messages of a session that is gone must not be given any more.
	HeadDown struct{ Why string }
	// FromHead is a message of the head, by value: wire.Welcome, wire.Job, wire.Assign,
	// wire.Withdraw, wire.Stop, wire.Reserve, wire.Start, wire.Release, wire.Ack,
	// wire.Advice, wire.Forget, wire.Shutdown or wire.Checkpoint.
	FromHead struct{ Msg any }

	// Recovered is the first event of a Core whose State was rebuilt: what the
	// supervisor knows. Unacknowledged exits among them are told again as ProcExited.
	Recovered struct{ Procs []ProcInfo }
	// ProcStarted and ProcFailed answer Spawn. Code is 126 or 127 as in a shell, else -1.
	ProcStarted struct {
		Proc wire.Proc
		PID  int
		At   int64
	}
	ProcFailed struct {
		Proc wire.Proc
		Code int32
		Err  *errs.Wire
	}
	// ProcExited: the supervisor reaped it. It is told until AckExit.
	ProcExited struct {
		Proc   wire.Proc
		Code   int32 // exit code, or 128+Signal
		Signal int32
		RSS    int64
		At     int64
		// Started is when it was started: its end may be told before ProcStarted.
		Started int64
		// Leftover: processes of its group live on.
		Leftover bool
		Why      string // what is known of it beyond that; "" = nothing
	}
	// OutputDrained: all its output is in the spool, whose length is then LogEnd. It may
	// come before ProcExited.
	OutputDrained struct {
		Proc   wire.Proc
		LogEnd int64
	}
	// RankStopped: a rank of an open group has been in state T (stopped) for a second.
	RankStopped struct{ Proc wire.Proc }
	// GroupFailed: a collective cannot go on (a peer is gone, a rank never called). Rank
	// is the one at fault, -1 when it is a node.
	GroupFailed struct {
		Gang  wire.Try
		Rank  int32
		Cause string
	}

	// Local is a request of a process of this node. It is answered by one LocalReply
	// with the same Req.
	Local struct {
		Req        uint64
		Proc       wire.Proc
		Op         LocalOp
		Step       int64              // OpReport; -1 = one more than the last
		Metrics    map[string]float64 // OpReport
		Checkpoint string             // OpReport: already copied to the job's checkpoint place
	}
	// LocalGone: the caller of a request hung up.
	LocalGone struct{ Req uint64 }

	// OutputFailed: the output of a job cannot be written, and was waited for long enough.
	OutputFailed struct {
		Job wire.JobID
		Err *errs.Wire
	}
	// OutputHeld: the output of a job cannot be written at the moment and its processes
	// wait; Why is empty when it goes on.
	OutputHeld struct {
		Job wire.JobID
		Why string
	}
	// PythonFound: the node's interpreter, path and version.
	PythonFound struct{ Python string }
	// NodeTrouble: something is wrong with the node although it runs; "" = not any more.
	NodeTrouble struct{ Why string }
	// DemandChanged: what waits on this node for room of others (asker's side of leases).
	// Seen is the Seq of the newest LeaseTaken that is counted in.
	DemandChanged struct {
		Seen   uint64
		Shapes []wire.Demanded
	}
	// MakeGroup: a placement group is wanted.
	MakeGroup struct{ Spec wire.GroupSpec }
	// EndGroup: one of this node is not.
	EndGroup struct {
		ID  wire.GroupID
		Why string
	}
	// ActorsChanged: wills of detached actors that are new, and which are dead.
	ActorsChanged struct{ Told wire.ActorTell }
	// ProgramsChanged: what programs have here, for the head.
	ProgramsChanged struct{ Programs wire.Programs }
	// LeaseIdle: so many slots of a taken lease are not wanted any more.
	LeaseIdle struct {
		Lease wire.LeaseID
		Slots uint32
	}
	// LeaveSoon: what granted the node takes it away (a signal). By: work may end by itself
	// until then, and is stopped with Grace; 0 = nobody has said when.
	LeaveSoon struct {
		Why   string
		By    int64
		Grace int64
	}
	// StopNode: the node was told to end by its own machine (a signal).
	StopNode struct {
		Why   string
		Grace int64
	}
	// LogsShipped answers ShipLogs.
	LogsShipped struct{}
	// ResourcesChanged: other amounts, or GPUs that others took or gave back, or cores.
	ResourcesChanged struct {
		Total  wire.Resources
		GPUs   []wire.GPU
		Others int64 // of Total.CPU: what others keep busy
		Cores  []int // those on which they were seen
	}
	// Tick: time passed. Due says when the next is wanted.
	Tick struct {
		Load1   float64
		Rate    int64    // see wire.Beat
		Relays  []string // likewise
		MemFree int64
	}
	// Flush ends a burst of events.
	Flush struct{}
)

// ProcInfo is a process in the supervisor's table.
type ProcInfo struct {
	Proc   wire.Proc
	PID    int
	At     int64
	Exited bool // and not acknowledged
}

// LocalOp is what a process asks for.
type LocalOp uint8

const (
	OpReport     LocalOp = iota // how it goes; learns whether to leave
	OpLeave                     // whether to leave
	OpParams                    // its parameters
	OpCheckpoint                // where to resume from
	OpJoin                      // join the group of its gang
	OpCheck                     // does this process run here?
)

// Effect is something to do.
type Effect interface{ effect() }

// Effects.
type (
	// ToHead sends a message on the control stream; without one it is dropped. In a
	// wire.Reserved that is OK the shell fills in Port and Addr.
	ToHead struct {
		Type uint16
		Msg  any
	}
	// Spawn starts a process, answered by ProcStarted or ProcFailed.
	Spawn struct {
		Proc       wire.Proc
		Job        *wire.Job
		Argv       []string
		Env        []string // the run contract: stands above all other environment
		Soft       []string // defaults that the pool's or the job's environment may override
		Dir        string
		Params     []byte // JSON object for LAUNCHER_PARAMS, or nil
		Hostfile   []byte // of a gang, or nil
		Checkpoint string // directory to resume from, "" = none
		CPUs       []int  // cores to bind to; nil = all of the node's
		GPUs       []string
		Memory     int64
	}
	// Signal sends a signal to a process or its whole group. A process that is gone is
	// not an error.
	Signal struct {
		Proc  wire.Proc
		Sig   int32
		Group bool
	}
	// AckExit lets the supervisor forget an exit; the shell removes what it kept of the
	// process.
	AckExit struct{ Proc wire.Proc }
	// ReleaseLogs: the head has all output of the job.
	ReleaseLogs struct{ Job wire.JobID }

	// OpenGroup makes the group memory of a gang, or takes it up again after a restart.
	OpenGroup struct {
		Gang       wire.Try
		World      uint32
		Nodes      []wire.GangNode
		First      uint32
		Count      uint32
		LocalWorld uint32
		Restored   bool // the agent restarted: the memory is in the supervisor's store
	}
	// AbortGroup makes every local rank's pending and later collectives fail.
	AbortGroup struct {
		Gang  wire.Try
		Rank  int32
		Cause string
	}
	// LeaveGroup: a rank exited with 0. Collectives that need it fail from now on, those
	// that it completed do not.
	LeaveGroup struct {
		Gang wire.Try
		Rank uint32
	}
	// CloseGroup: no rank is left; free the memory.
	CloseGroup struct{ Gang wire.Try }

	// LocalReply answers a Local request.
	LocalReply struct {
		Req        uint64
		Err        *errs.Wire
		Leave      wire.LeaveReason // OpReport, OpLeave
		Deadline   int64            // unix seconds, 0 = none
		Params     []byte           // OpParams
		Checkpoint string           // OpCheckpoint
		Step       int64
		Join       *Join     // OpJoin
		Job        *wire.Job // OpCheck
	}

	// DeleteCheckpoints removes old checkpoints of a job.
	DeleteCheckpoints struct {
		Job   wire.JobID
		Paths []string
	}
	// ShipLogs: the node is about to leave; LogsShipped when the head has all output, or
	// after Bound nanoseconds.
	ShipLogs struct{ Bound int64 }
	// LeaseTaken: tasks of a shape may run on another node.
	LeaseTaken struct{ wire.Leased }
	// LeaseLess: slots of a lease, taken or given, are gone.
	LeaseLess struct{ wire.LeaseCut }
	// LeasesEnd: all leases are, with the session of the head that they came by.
	LeasesEnd struct{}
	// BundleOver: a bundle is to be used no more; what runs in it is to end.
	BundleOver struct {
		ID  wire.BundleID
		Why string
	}
	// TakeActor: a detached actor is this node's from now on.
	TakeActor struct{ wire.ActorTake }
	// JobsOver: nothing of these jobs lives on any node (wire.JobsOver).
	JobsOver struct{ Jobs, Held []string }
	// GroupChanged: what is known of a group of this node is new. Told: the head has spoken
	// of it; Over: it is no more; Conflict: its name was taken.
	GroupChanged struct {
		ID       wire.GroupID
		Told     bool
		Over     bool
		Conflict bool
		Why      string
	}
	// NoRoomEver: no node can run tasks of a shape.
	NoRoomEver struct{ wire.Infeasible }
	// HangUp ends the session with the head: it broke the protocol or is an older one.
	HangUp struct{ Why string }
	// Leave ends the agent and its supervisor; nothing of the node's work is left.
	Leave struct{ Why string }
)

// Join is what a rank learns when it joins its group.
type Join struct {
	Gang       wire.Try
	Rank       uint32
	World      uint32
	LocalRank  uint32
	LocalWorld uint32
}

// Record is one decision. State.Apply of all records in order gives the State.
type Record interface{ record() byte }

// Output is what a Step decided. Both slices are valid until the next Step.
type Output struct {
	Records []Record
	Effects []Effect
}

func (HeadUp) event()           {}
func (HeadDown) event()         {}
func (FromHead) event()         {}
func (Recovered) event()        {}
func (ProcStarted) event()      {}
func (ProcFailed) event()       {}
func (ProcExited) event()       {}
func (OutputDrained) event()    {}
func (RankStopped) event()      {}
func (GroupFailed) event()      {}
func (Local) event()            {}
func (LocalGone) event()        {}
func (ResourcesChanged) event() {}
func (LogsShipped) event()      {}
func (OutputFailed) event()     {}
func (OutputHeld) event()       {}
func (PythonFound) event()      {}
func (NodeTrouble) event()      {}
func (DemandChanged) event()    {}
func (LeaseIdle) event()        {}
func (MakeGroup) event()        {}
func (EndGroup) event()         {}
func (ProgramsChanged) event()  {}
func (ActorsChanged) event()    {}
func (LeaveSoon) event()        {}
func (StopNode) event()         {}
func (Tick) event()             {}
func (Flush) event()            {}

func (ToHead) effect()            {}
func (Spawn) effect()             {}
func (Signal) effect()            {}
func (AckExit) effect()           {}
func (ReleaseLogs) effect()       {}
func (OpenGroup) effect()         {}
func (AbortGroup) effect()        {}
func (LeaveGroup) effect()        {}
func (CloseGroup) effect()        {}
func (LocalReply) effect()        {}
func (DeleteCheckpoints) effect() {}
func (ShipLogs) effect()          {}
func (LeaseTaken) effect()        {}
func (LeaseLess) effect()         {}
func (LeasesEnd) effect()         {}
func (NoRoomEver) effect()        {}
func (BundleOver) effect()        {}
func (JobsOver) effect()          {}
func (TakeActor) effect()         {}
func (GroupChanged) effect()      {}
func (HangUp) effect()            {}
func (Leave) effect()             {}
