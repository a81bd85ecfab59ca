package core

import (
	"encoding/binary"

	"launcher/internal/errs"
	"launcher/jobs"
	"launcher/wire"
)

// RecordKind numbers the kinds of records. The numbers are in journals: append only.
type RecordKind uint16

const (
	kindHead RecordKind = iota + 1
	kindPools
	kindSubmission
	kindAllocs
	kindUnsubmit
	kindNodeUp
	kindNodeGone
	kindAllocEnded
	kindJob
	kindJobCancel
	kindTaskCancel
	kindEnds
	kindLost
	kindGang
	kindSpawn
	kindReport
	kindTold
	kindCheckpoint
	kindJobEnd
	kindLogsDone
	kindDrain
	kindDown
	kindGangFault
	kindRecovered
	kindGroup
	kindGroupOver
	kindActor
	kindActorMoved
	kindActorOver
	kindLearned
)

// Record is one durable fact. Fields of records are append-only.
type Record interface{ recordKind() RecordKind }

// RecHead begins a life of the head.
type RecHead struct {
	Epoch   wire.Epoch
	Cluster string
	Nonce   string
	Version string
	At      int64
	Again   bool        // the cluster had gone down and is brought up anew
	Moved   bool        // it goes on with a copy of the journal, which may lack the end
	Seat    wire.NodeID // the node that it is on; "" = at home
	Why     string      // why it is there
}

// RecPools sets the pools, at the first start and by Update.
type RecPools struct {
	Pools    []wire.Pool
	SpecText string
	SpecPath string
}

// RecSubmission is written before a backend is asked for nodes.
type RecSubmission struct {
	Token  string
	Pool   string
	Nodes  []wire.NodeID
	Epochs []wire.Epoch
	At     int64
}

// RecAllocs is what the backend made of it.
type RecAllocs struct {
	Token  string
	Allocs []Alloc
}

// RecUnsubmit: the backend refused the submission, or never got it.
type RecUnsubmit struct {
	Token string
	Why   string
	At    int64
}

// RecAllocEnded: an allocation is over, its nodes with it.
type RecAllocEnded struct {
	Token  string
	Handle []byte
	Why    string
	At     int64
	Unused bool // it was taken back before it began
}

// RecNodeUp: a node said Hello for the first time, or came back after it was lost.
type RecNodeUp struct {
	Node  wire.NodeID
	Epoch wire.Epoch
	Pool  string
	Token string
	Host  string
	Total wire.Resources
	At    int64
	// Number is what the first of these gives to a life of a node; Welcome.Number. Journals
	// of before it have 0, and a node that they know gets one when it greets again.
	Number uint32
}

// RecNodeGone: the node is lost (Proof false: it may come back, its attempts are
// fenced) or dead. The gangs it had ranks of lose them. Single tries that it is known to
// have had are named in RecLost records before this one; Unnamed says that the head had
// restarted and did not know them.
type RecNodeGone struct {
	Node    wire.NodeID
	Epoch   wire.Epoch
	Proof   bool
	Cause   string
	At      int64
	Unnamed bool
}

// RecRecovered: what nobody claims after a restart has been fenced, if it had to be.
type RecRecovered struct{}

// RecDrain: the node gets nothing new and leaves when it is empty. Deadline: when what
// still runs is stopped; 0 = never. Keep: its pool replaces it.
type RecDrain struct {
	Node     wire.NodeID
	Epoch    wire.Epoch
	Deadline int64
	Keep     bool
	Why      string
}

// RecJob: a job was accepted.
type RecJob struct {
	Job   wire.JobID
	Token string
	Spec  wire.JobSpec
	At    int64
}

// RecJobCancel: what runs is being stopped; RecJobEnd follows.
type RecJobCancel struct {
	Job   wire.JobID
	Cause string
	At    int64
}

// RecTaskCancel: one task is not wanted any more.
type RecTaskCancel struct {
	Job   wire.JobID
	Index uint32
	At    int64
}

// RecEnds are ends that a node has told, with the number of the newest. Ends of gangs'
// ranks are always Items.
type RecEnds struct {
	Node  wire.NodeID
	Epoch wire.Epoch
	Seq   uint64
	Parts []EndPart
	At    int64
}

// EndPart is the part of RecEnds that belongs to one job. LogEnd is how much output of
// the job the node has.
type EndPart struct {
	Job    wire.JobID
	Runs   []EndRun
	Items  []EndItem
	LogEnd int64
	First  int64 // earliest start of any of them, unix nanoseconds; 0 = none started
}

// EndRun is a stretch of tasks that ended alike and need no more said.
type EndRun struct {
	From, To uint32
	Attempt  wire.Attempt
	Code     int32
}

// EndItem is the end of one process with what is to be remembered of it.
type EndItem struct {
	Index   uint32
	Attempt wire.Attempt
	Rank    uint32
	Code    int32
	Reason  wire.Reason
	Started int64
	Ended   int64
	Cause   string
	Open    []OpenStep // what a rank had reported that others of its gang had not
}

// OpenStep is a step that is not committed yet.
type OpenStep struct {
	Step  int64
	Dir   string
	Score *float64
}

// RecLost: attempts that no result will be taken of. Their tasks get the next attempt.
// Free losses are not counted (the head lost track, the task was moved).
type RecLost struct {
	Job    wire.JobID
	Node   wire.NodeID
	Ranges []wire.Range
	Free   bool
	Cause  string
	At     int64
}

// RecGang is written before a gang is started: its attempt and where its ranks are.
type RecGang struct {
	Job     wire.JobID
	Index   uint32
	Attempt wire.Attempt
	World   uint32
	Nodes   []wire.GangNode
	Epochs  []wire.Epoch // of Nodes
	Master  string
	Port    uint16
	At      int64
}

// RecGangFault: why a gang could not go on, when that is known before its ranks have
// ended. Rank -1: a node's part, which counts as a loss.
type RecGangFault struct {
	Job     wire.JobID
	Index   uint32
	Attempt wire.Attempt
	Rank    int32
	Cause   string
}

// RecSpawn: the machine was asked for up to Max tasks and gave Spawns.
type RecSpawn struct {
	Job    wire.JobID
	Max    int
	Spawns []jobs.Spawn
}

// RecReport is a report that the job's machine remembers.
type RecReport struct {
	Report wire.Report
}

// RecTold: a try was told to leave, so that its exit code 75 is believed.
type RecTold struct {
	Job     wire.JobID
	Index   uint32
	Attempt wire.Attempt
	Leave   wire.LeaveReason
}

// RecCheckpoint: every rank has reported Step, and the checkpoint under Path is whole. With
// Gone: it was lost with the head's machine, which was found At that time.
type RecCheckpoint struct {
	Job     wire.JobID
	Index   uint32
	Attempt wire.Attempt
	Step    int64
	Path    string
	Score   *float64
	At      int64
	Gone    bool
}

// RecJobEnd ends a job from outside its machine: cancelled, impossible, cluster down.
type RecJobEnd struct {
	Job   wire.JobID
	State wire.State
	Code  int32
	Cause string
	At    int64
}

// RecLogsDone: the record has all of the job's output.
type RecLogsDone struct{ Job wire.JobID }

// RecDown: the cluster goes down, whatever happens to the head.
type RecDown struct {
	Drain bool
	Grace int64
	At    int64
}

// RecGroup is a placement group that is to outlive its owner's node: a detached one, or one
// whose owner is gone while its job lives. Where its bundles are, their nodes say.
type RecGroup struct {
	Spec wire.GroupSpec
	At   int64
}

// RecGroupOver: it was removed.
type RecGroupOver struct{ ID wire.GroupID }

// RecLearned is what was learned of how long a job's work takes to report, save and leave.
type RecLearned struct {
	Job     wire.JobID
	Learned learned
}

func (RecHead) recordKind() RecordKind       { return kindHead }
func (RecPools) recordKind() RecordKind      { return kindPools }
func (RecSubmission) recordKind() RecordKind { return kindSubmission }
func (RecAllocs) recordKind() RecordKind     { return kindAllocs }
func (RecUnsubmit) recordKind() RecordKind   { return kindUnsubmit }
func (RecNodeUp) recordKind() RecordKind     { return kindNodeUp }
func (RecNodeGone) recordKind() RecordKind   { return kindNodeGone }
func (RecAllocEnded) recordKind() RecordKind { return kindAllocEnded }
func (RecJob) recordKind() RecordKind        { return kindJob }
func (RecJobCancel) recordKind() RecordKind  { return kindJobCancel }
func (RecTaskCancel) recordKind() RecordKind { return kindTaskCancel }
func (RecEnds) recordKind() RecordKind       { return kindEnds }
func (RecLost) recordKind() RecordKind       { return kindLost }
func (RecGang) recordKind() RecordKind       { return kindGang }
func (RecSpawn) recordKind() RecordKind      { return kindSpawn }
func (RecReport) recordKind() RecordKind     { return kindReport }
func (RecTold) recordKind() RecordKind       { return kindTold }
func (RecCheckpoint) recordKind() RecordKind { return kindCheckpoint }
func (RecJobEnd) recordKind() RecordKind     { return kindJobEnd }
func (RecLogsDone) recordKind() RecordKind   { return kindLogsDone }
func (RecDrain) recordKind() RecordKind      { return kindDrain }
func (RecDown) recordKind() RecordKind       { return kindDown }
func (RecGangFault) recordKind() RecordKind  { return kindGangFault }
func (RecRecovered) recordKind() RecordKind  { return kindRecovered }
func (RecGroup) recordKind() RecordKind      { return kindGroup }
func (RecGroupOver) recordKind() RecordKind  { return kindGroupOver }
func (RecActor) recordKind() RecordKind      { return kindActor }
func (RecActorMoved) recordKind() RecordKind { return kindActorMoved }
func (RecActorOver) recordKind() RecordKind  { return kindActorOver }
func (RecLearned) recordKind() RecordKind    { return kindLearned }

// EncodeRecord gives the journal's form: the kind, two bytes little-endian, then the
// record in msgpack.
func EncodeRecord(r Record) []byte {
	return append(binary.LittleEndian.AppendUint16(nil, uint16(r.recordKind())), wire.Marshal(r)...)
}

// DecodeRecord is the inverse of EncodeRecord.
func DecodeRecord(b []byte) (Record, error) {
	if len(b) < 2 {
		return nil, errs.New(errs.Corrupt, "a journal record of %d bytes", len(b))
	}
	k, body := RecordKind(binary.LittleEndian.Uint16(b)), b[2:]
	switch k {
	case kindHead:
		return decode[RecHead](body)
	case kindPools:
		return decode[RecPools](body)
	case kindSubmission:
		return decode[RecSubmission](body)
	case kindAllocs:
		return decode[RecAllocs](body)
	case kindUnsubmit:
		return decode[RecUnsubmit](body)
	case kindNodeUp:
		return decode[RecNodeUp](body)
	case kindNodeGone:
		return decode[RecNodeGone](body)
	case kindAllocEnded:
		return decode[RecAllocEnded](body)
	case kindJob:
		return decode[RecJob](body)
	case kindJobCancel:
		return decode[RecJobCancel](body)
	case kindTaskCancel:
		return decode[RecTaskCancel](body)
	case kindEnds:
		return decode[RecEnds](body)
	case kindLost:
		return decode[RecLost](body)
	case kindGang:
		return decode[RecGang](body)
	case kindSpawn:
		return decode[RecSpawn](body)
	case kindReport:
		return decode[RecReport](body)
	case kindTold:
		return decode[RecTold](body)
	case kindCheckpoint:
		return decode[RecCheckpoint](body)
	case kindJobEnd:
		return decode[RecJobEnd](body)
	case kindLogsDone:
		return decode[RecLogsDone](body)
	case kindDrain:
		return decode[RecDrain](body)
	case kindDown:
		return decode[RecDown](body)
	case kindGangFault:
		return decode[RecGangFault](body)
	case kindRecovered:
		return decode[RecRecovered](body)
	case kindGroup:
		return decode[RecGroup](body)
	case kindGroupOver:
		return decode[RecGroupOver](body)
	case kindActor:
		return decode[RecActor](body)
	case kindActorMoved:
		return decode[RecActorMoved](body)
	case kindActorOver:
		return decode[RecActorOver](body)
	case kindLearned:
		return decode[RecLearned](body)
	}
	return nil, errs.New(errs.Version, "the journal has a record of kind %d, which this version does not know", k).
		Hint("it was written by a newer launcher; use that one")
}

func decode[T Record](b []byte) (Record, error) {
	var r T
	if err := wire.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	return r, nil
}
