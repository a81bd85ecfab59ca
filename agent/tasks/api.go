package tasks

import (
	"strings"

	"launcher/agent/core"
	"launcher/wire"
	"launcher/wire/sdk"
)

// Config of a Core.
type Config struct {
	Number     uint32 // of this life of the node (Welcome.Number)
	Node       wire.NodeID
	Cores      int // workers that are kept when there is nothing to do
	MaxWorkers int // workers at most; 0 = Cores + 64
	MaxQueued  int64
	MaxLineage int64 // bytes of finished tasks that are kept to be run again
	MaxUnread  int   // bytes that may wait for a client before values are only announced
	// Unread is how many bytes of earlier Sends a client has not taken yet; nil = none.
	Unread func(client uint32) int
}

// Room is the node's resources, which the core of the agent has too. Its methods are
// called from within a method of Core and must not call back.
type Room interface {
	// Take takes room for a worker whose tasks take at most time nanoseconds (0 = unknown).
	// It is refused, too, when it is another job's turn.
	Take(now int64, who core.Who, need wire.Resources, time int64) (core.Slot, bool)
	// Claim says what the tasks of all jobs use here and want, Before whose turn it is
	// (below 0: a's), Contended whether anybody but tasks wants room.
	Claim(now int64, all []core.Claim)
	Before(a, b core.Who) int
	// Why says why somebody does not get room, for people.
	Why(now int64, who core.Who, need wire.Resources) string
	Contended() bool
	// TakeGroup takes room out of a bundle of a placement group; HasGroup reports whether
	// this node keeps one.
	TakeGroup(s *wire.Strategy, need wire.Resources) (core.Slot, bool)
	HasGroup(s *wire.Strategy) bool
	// Keep takes room that there may not be: of a worker that goes on after it has waited.
	Keep(need wire.Resources, s core.Slot)
	Give(need wire.Resources, s core.Slot)
	// Lend: a driver that `run` started waits (true), so its cores are free, or goes on.
	Lend(proc string, lend bool)
	// TakeLeased takes room under a lease that this node has given, GiveLeased gives it
	// back; Leased reports whether the lease stands and is of that life of a node.
	TakeLeased(now int64, lease wire.LeaseID) (core.Slot, bool)
	GiveLeased(lease wire.LeaseID, need wire.Resources, s core.Slot)
	Leased(lease wire.LeaseID, number uint32) bool
	// LendLeased lets another task have the slot of one that waits, or takes it back, which
	// may make more of them than there are.
	LendLeased(lease wire.LeaseID, lend bool)
	// Yields: tasks of at most that time (0 = unknown) give back what they have when they end,
	// for others that room is kept for; KeptFor names those.
	Yields(now, time int64) bool
	KeptFor(now int64) string
	Could(need wire.Resources) bool
	Total() wire.Resources
}

// Store is the node's memory for objects, as far as the reactor needs its answer at once.
type Store interface {
	// Seal takes up an object that a client has written.
	Seal(client uint32, id wire.ObjectID, form byte, segment uint32, offset, size int64) error
	// Resident reports whether a shared object is in memory (else it is on disk).
	Resident(id wire.ObjectID) bool
	// Own has a copy of another node's object treated as one of this node's: it is not
	// dropped for room.
	Own(id wire.ObjectID)
}

// Client is who is at the other end of a connection.
type Client struct {
	ID       uint32
	Kind     int    // sdk.KindDriver, sdk.KindWorker
	Language string // "python", "go"
	Job      string // drivers: key of the job they belong to
	Name     string
	Proc     string // LAUNCHER_PROC of a driver that a job started
	PID      int
	Program  string // how workers for it are started
	Dir      string
	Path     []string
	Peer     uint32     // sdk.KindPeer: the life of the node whose agent it is
	DirOf    uint32     // as in Key
	Terms    wire.Terms // of its job
}

// Key is what a worker is for: tasks of another key never run in it.
type Key struct {
	Job      string
	Language string
	Program  string
	Dir      string
	Path     string // directories, joined by 0 bytes
	Env      string // NAME=VALUE, sorted, joined by 0 bytes
	GPUs     string // UUIDs, joined by commas
	DirOf    uint32 // Dir is a working_dir as the node of this number sees it; 0 = each node's own
}

// key is that of the workers for what a driver or peer submits.
func (x Client) key() Key {
	return Key{Job: x.Job, Language: x.Language, Program: x.Program, Dir: x.Dir, Path: strings.Join(x.Path, "\x00"), DirOf: x.DirOf}
}

// Effect is something that the shell is to do, after it has written the records.
type Effect interface{ effect() }

// Effects.
type (
	// StartWorker starts a process. It is answered by Connect of a Client with that ID, or
	// by WorkerFailed. Need and Slot are the room that it will have at first.
	StartWorker struct {
		ID   uint32
		Key  Key
		Need wire.Resources
		Slot core.Slot
	}
	// StopWorker ends one: by Exit (which is sent as a frame), or with Force by SIGKILL.
	StopWorker struct {
		ID    uint32
		Force bool
	}
	// Interrupt has a worker look at what it is to cancel, while a task runs: SIGINT, after
	// the CancelTask frame.
	Interrupt struct{ ID uint32 }
	// Free lets go of shared objects that nothing refers to any more.
	Free struct{ IDs []wire.ObjectID }
	// Restore reads a spilled object back, or brings one that other nodes have; Restored
	// answers.
	Restore struct {
		ID    wire.ObjectID
		Nodes []uint32
	}
	// Withdraw takes Exec frames of sequence From up to To-1 back through the control page
	// of a worker; Withdrawn answers.
	Withdraw struct{ Client, From, To uint32 }
	// Borrow tells the owner of an object, another node's, that it is referred to here;
	// Unfetch ends that.
	Borrow struct{ ID wire.ObjectID }
	// Fetch finds the value of another node's object; Fetched answers.
	Fetch struct{ ID wire.ObjectID }
	// Unfetch: it is not needed any more.
	Unfetch struct{ ID wire.ObjectID }
	// OpenPeer connects to the agent of another node, to run tasks of a key there, and
	// again when the connection breaks: RemoteOpen, RemoteClosed, RemoteGone tell. What is
	// sent to the client ID goes there. ClosePeer ends it.
	OpenPeer struct {
		ID     uint32
		Number uint32
		Key    Key
		Terms  wire.Terms
	}
	ClosePeer struct{ ID uint32 }
	// Copy has the agent of a node keep a copy of an object; Copied answers. Uncopy ends that.
	Copy struct {
		ID     wire.ObjectID
		Number uint32
		Body   []byte // of the frame
	}
	Uncopy struct {
		ID     wire.ObjectID
		Number uint32
	}
	// Choose looks for nodes, besides some, that could keep an object which is to have so
	// many copies; Copy is called with them.
	Choose struct {
		ID   wire.ObjectID
		Want int
		Not  []uint32
	}
	// Watch has NodeGone told of a life of a node.
	Watch struct{ Number uint32 }
	// LeaseIdle gives slots of a lease back to the head.
	LeaseIdle struct {
		Lease wire.LeaseID
		Slots uint32
	}
	// ActorOver: an actor of this node is dead; its name, if it has one, is free.
	ActorOver struct{ ID wire.ObjectID }
	// Will is left to the head of a detached actor of this node; ActorOver ends it. NoWill tells
	// a job's drivers that there cannot be one.
	Will   struct{ wire.ActorWill }
	NoWill struct{ Job, Why string }
	// JobOver: the last driver of a job is gone; nothing of it is left.
	JobOver struct{ Job string }
)

func (StartWorker) effect() {}
func (StopWorker) effect()  {}
func (Interrupt) effect()   {}
func (Free) effect()        {}
func (Restore) effect()     {}
func (Withdraw) effect()    {}
func (Fetch) effect()       {}
func (Unfetch) effect()     {}
func (Borrow) effect()      {}
func (OpenPeer) effect()    {}
func (ClosePeer) effect()   {}
func (LeaseIdle) effect()   {}
func (Copy) effect()        {}
func (Uncopy) effect()      {}
func (Choose) effect()      {}
func (Watch) effect()       {}
func (ActorOver) effect()   {}
func (JobOver) effect()     {}
func (Will) effect()        {}
func (NoWill) effect()      {}

// Send is frames for a client, to be written as they are.
type Send struct {
	Client uint32
	Frames []byte
}

// Output is what the calls since the last Take brought. It is valid until the next call.
type Output struct {
	// Records are to be safe from the death of the agent before anything else is done;
	// Restore takes them, in order, in one piece or several.
	Records []byte
	Effects []Effect
	Sends   []Send
	// Nudge: the reactor has given room back.
	Nudge bool
}

// Stats are counts for status.
type Stats struct {
	Queued, Running, Objects, Workers int
}

// errorOf makes an error value.
func (c *Core) errorOf(code, msg string, t *task, hints ...string) []byte {
	e := sdk.Error{Code: code, Message: msg, Node: string(c.cfg.Node), Hints: hints}
	if t != nil {
		e.Task = t.shape.name
	}
	return e.Encode()
}
