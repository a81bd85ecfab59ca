package core

import (
	"cmp"

	"launcher/internal/errs"
	"launcher/wire"
)

// The records of the state journal. Fields are append-only; numbers are never reused.
type (
	// RecHead: a head said Welcome. Everything up to Acked has been acknowledged.
	RecHead struct {
		Epoch wire.Epoch
		Grace int64
		Acked uint64
		// Number is of this life of the node; 0 = not told.
		Number uint32
	}
	// RecLost: the head is gone since At (0 = it is there).
	RecLost struct{ At int64 }
	// RecJob: what a job's processes need.
	RecJob struct{ Job wire.Job }
	// RecAssign: tries queued, none of which was known before.
	RecAssign struct {
		Job    wire.JobID
		Ranges []wire.Range
		Items  []wire.Item
	}
	// RecWithdraw: the newest N queued tries of a job were given back.
	RecWithdraw struct {
		Job wire.JobID
		N   uint32
	}
	// RecDrop: one queued try was dropped without a word.
	RecDrop struct{ Try wire.Try }
	// RecAdmit: a queued try got its room; its process is to be started.
	RecAdmit struct {
		Try  wire.Try
		Slot Slot
		At   int64
	}
	// RecReserve: room for ranks of a gang.
	RecReserve struct {
		Gang  wire.Try
		Until int64
		Slots []Slot
	}
	// RecStart: a reserved gang starts.
	RecStart struct {
		Start wire.Start
		First uint32
		Count uint32
		At    int64
	}
	// RecRelease: a reservation ended.
	RecRelease struct{ Gang wire.Try }
	// RecStarted: the supervisor started a process.
	RecStarted struct {
		Proc wire.Proc
		PID  int
		At   int64
	}
	// RecJoined: a rank maps the memory of its group.
	RecJoined struct{ Proc wire.Proc }
	// RecFault: a gang cannot go on.
	RecFault struct {
		Gang  wire.Try
		Rank  int32
		Cause string
	}
	// RecStop: a try is being ended: SIGTERM at Term, SIGKILL at Kill.
	RecStop struct {
		Try    wire.Try
		Reason wire.Reason
		Term   int64
		Kill   int64
	}
	// RecAdvice: what a try is told when it asks.
	RecAdvice struct {
		Try      wire.Try
		Leave    wire.LeaveReason
		Deadline int64
	}
	// RecCommitted: a checkpoint of a try is safe at the head.
	RecCommitted struct {
		Try  wire.Try
		Step int64
	}
	// RecEnded: a process ended, or a queued try was stopped (Code -1). It gets the next
	// number and is kept until acknowledged.
	RecEnded struct{ Ended wire.Ended }
	// RecStopQueue: all queued tries of a job ended without having started.
	RecStopQueue struct {
		Job    wire.JobID
		Reason wire.Reason
		At     int64
	}
	// RecAck: the head has every completion up to Seq.
	RecAck struct{ Seq uint64 }
	// RecForget: the job is over.
	RecForget struct{ Job wire.JobID }
	// RecPhase: the node drains or ends.
	RecPhase struct {
		Phase Phase
		Why   string
		At    int64
		Stop  int64 // draining: when what still runs is stopped; 0 = never
		Grace int64
	}

	// Records of a snapshot: a state in few records.

	// RecTry is a try that is not queued, whole.
	RecTry struct{ Try Try }
	// RecUnacked is the completions that are not acknowledged; Seq is the newest's number.
	RecUnacked struct{ Done wire.Done }

	// RecBundle: a bundle of a placement group has room here; until Until only, unless 0.
	RecBundle struct {
		ID    wire.BundleID
		Need  wire.Resources
		Slot  Slot
		Until int64
	}
	// RecBundleOver: it is to be used no more.
	RecBundleOver struct{ ID wire.BundleID }
	// RecGroup: a placement group was made on this node, or lies elsewhere now.
	RecGroup struct {
		Spec  wire.GroupSpec
		State wire.GroupState
		Nodes []wire.NodeID
	}
	// RecGroupOver: it is removed.
	RecGroupOver struct{ ID wire.GroupID }
)

// Phase of a node's life, in order.
type Phase uint8

const (
	Working  Phase = iota
	Draining       // no new work; what runs may end
	Ending         // what runs is being stopped
	Gone           // the farewell was said
)

// Slot is the room of one rank: cores to bind to (nil = no binding) and shares of GPUs, of
// the node or of a bundle of it.
type Slot struct {
	CPUs   []int
	GPUs   []Share
	Bundle wire.BundleID
}

// Share is a part of a GPU, in wire.Unit-ths.
type Share struct {
	UUID    string
	Units   int64
	Visible string // what CUDA_VISIBLE_DEVICES calls it, where that is not the UUID
}

// Device is what CUDA_VISIBLE_DEVICES calls it.
func (s Share) Device() string { return cmp.Or(s.Visible, s.UUID) }

// kinds gives each record its number: the index.
var kinds = []func() recordPtr{
	1:  func() recordPtr { return &ptr[RecHead]{} },
	2:  func() recordPtr { return &ptr[RecLost]{} },
	3:  func() recordPtr { return &ptr[RecJob]{} },
	4:  func() recordPtr { return &ptr[RecAssign]{} },
	5:  func() recordPtr { return &ptr[RecWithdraw]{} },
	6:  func() recordPtr { return &ptr[RecDrop]{} },
	7:  func() recordPtr { return &ptr[RecAdmit]{} },
	8:  func() recordPtr { return &ptr[RecReserve]{} },
	9:  func() recordPtr { return &ptr[RecStart]{} },
	10: func() recordPtr { return &ptr[RecRelease]{} },
	11: func() recordPtr { return &ptr[RecStarted]{} },
	12: func() recordPtr { return &ptr[RecJoined]{} },
	13: func() recordPtr { return &ptr[RecFault]{} },
	14: func() recordPtr { return &ptr[RecStop]{} },
	15: func() recordPtr { return &ptr[RecAdvice]{} },
	16: func() recordPtr { return &ptr[RecCommitted]{} },
	17: func() recordPtr { return &ptr[RecEnded]{} },
	18: func() recordPtr { return &ptr[RecStopQueue]{} },
	19: func() recordPtr { return &ptr[RecAck]{} },
	20: func() recordPtr { return &ptr[RecForget]{} },
	21: func() recordPtr { return &ptr[RecPhase]{} },
	22: func() recordPtr { return &ptr[RecTry]{} },
	23: func() recordPtr { return &ptr[RecUnacked]{} },
	24: func() recordPtr { return &ptr[RecBundle]{} },
	25: func() recordPtr { return &ptr[RecBundleOver]{} },
	26: func() recordPtr { return &ptr[RecGroup]{} },
	27: func() recordPtr { return &ptr[RecGroupOver]{} },
}

// recordPtr is somewhere to decode a record into.
type recordPtr interface {
	decode(b []byte) (Record, error)
}

type ptr[T Record] struct{ v T }

func (p *ptr[T]) decode(b []byte) (Record, error) {
	err := wire.Unmarshal(b, &p.v)
	return p.v, err
}

func (RecHead) record() byte       { return 1 }
func (RecLost) record() byte       { return 2 }
func (RecJob) record() byte        { return 3 }
func (RecAssign) record() byte     { return 4 }
func (RecWithdraw) record() byte   { return 5 }
func (RecDrop) record() byte       { return 6 }
func (RecAdmit) record() byte      { return 7 }
func (RecReserve) record() byte    { return 8 }
func (RecStart) record() byte      { return 9 }
func (RecRelease) record() byte    { return 10 }
func (RecStarted) record() byte    { return 11 }
func (RecJoined) record() byte     { return 12 }
func (RecFault) record() byte      { return 13 }
func (RecStop) record() byte       { return 14 }
func (RecAdvice) record() byte     { return 15 }
func (RecCommitted) record() byte  { return 16 }
func (RecEnded) record() byte      { return 17 }
func (RecStopQueue) record() byte  { return 18 }
func (RecAck) record() byte        { return 19 }
func (RecForget) record() byte     { return 20 }
func (RecPhase) record() byte      { return 21 }
func (RecTry) record() byte        { return 22 }
func (RecUnacked) record() byte    { return 23 }
func (RecBundle) record() byte     { return 24 }
func (RecBundleOver) record() byte { return 25 }
func (RecGroup) record() byte      { return 26 }
func (RecGroupOver) record() byte  { return 27 }

// Encode appends the bytes of a record to b: its number, then msgpack.
func Encode(b []byte, r Record) []byte {
	b = append(b, r.record())
	return append(b, wire.Marshal(r)...)
}

// Decode is the inverse of Encode.
func Decode(b []byte) (Record, error) {
	if len(b) == 0 || b[0] == 0 || int(b[0]) >= len(kinds) {
		return nil, errs.New(errs.Corrupt, "not a record of the agent's state")
	}
	return kinds[b[0]]().decode(b[1:])
}
