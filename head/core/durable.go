package core

import (
	"bytes"
	"slices"

	"launcher/internal/errs"
	"launcher/jobs"
	"launcher/wire"
)

// maxLosses is how often a task is run again for free because a node or worker died
// under it: one that kills what it runs on must not go round for ever.
const maxLosses = 10

// Ended jobs beyond these are forgotten, the oldest first. Hidden ones are those of
// `launcher exec`.
const (
	maxEndedJobs   = 10_000
	maxHiddenEnded = 16
)

// Durable is what the journal says: everything that outlives the head. It is changed by
// Apply only, and Apply depends on nothing but the Durable and the record.
type Durable struct {
	st       state
	machines map[wire.Kind]Maker
	advice   jobs.Advice // what the machine said to the newest RecReport; not part of the state
}

// state is the encoded part of Durable. Fields are append-only: it is in snapshots.
type state struct {
	Head     RecHead
	Created  int64
	Pools    []wire.Pool
	SpecText string
	SpecPath string
	Subs     map[string]*subD
	Nodes    map[wire.NodeID]*nodeD
	Jobs     map[wire.JobID]*jobD
	Tokens   map[string]wire.JobID
	NextJob  wire.JobID
	Ended    []wire.JobID // in the order they ended
	Down     *RecDown
	Unnamed  bool   // a node went away in recovery: what nobody claims may have run there
	Numbers  uint32 // the highest number that a life of a node ever got
	Groups   map[wire.GroupID]*RecGroup
	Actors   map[wire.ObjectID]*actorD
	Chains   map[string]*chainD // by pool
	Moves    int                // how often the head went from one seat to another
	Moved    int64
}

// chainD is what a pool has had since the cluster was brought up: jobs of a queue that
// followed one another.
type chainD struct {
	Allocs int
	First  int64 // when its first node came
}

// subD is a submission that may still have something at the backend.
type subD struct {
	Token  string
	Pool   string
	Nodes  []wire.NodeID
	Epochs []wire.Epoch
	At     int64
	Known  bool // the backend has answered: Allocs are what there is
	Allocs []*allocD
}

type allocD struct {
	Handle []byte
	Nodes  []wire.NodeID
	Ended  bool
}

// nodeState is how far a node has come. Numbers are in snapshots.
type nodeState uint8

const (
	nodeAsked nodeState = iota // submitted, not joined
	nodeUp
	nodeLost // silent for too long; may come back
	nodeGone
)

type nodeD struct {
	ID    wire.NodeID
	Epoch wire.Epoch
	Pool  string
	Token string
	Host  string
	Total wire.Resources
	State nodeState
	Since int64
	Cause string
	Acked uint64 // number of the newest completion on disk
	Drain *RecDrain
	// Number is of this life of the node; 0 before it joined.
	Number uint32
}

// fate is how a task is over.
type fate struct {
	Code   int32
	State  wire.State
	Pruned bool
}

// standing is what matters of a task that is not over: the attempt that runs or is to
// run, and how many it lost. Tasks without one are {1, 0}.
type standing struct {
	Attempt wire.Attempt
	Losses  uint8
}

// toldD: the attempt was told to leave.
type toldD struct {
	Attempt wire.Attempt
	Leave   wire.LeaveReason
}

// reportD names the newest report that the machine has taken of a task.
type reportD struct {
	Attempt wire.Attempt
	Time    int64
	No      uint64
}

// checkD are the committed checkpoints of a task that are kept.
type checkD struct {
	List []RecCheckpoint // in the order of commits
}

// detail is what is remembered of a task's newest ended attempt.
type detail struct {
	EndItem
	Node wire.NodeID
	Lost bool // its node or worker died
	Free bool // with Lost: not counted
}

// gangD is the newest started attempt of a gang.
type gangD struct {
	Attempt wire.Attempt
	World   uint32
	Nodes   []wire.GangNode
	Epochs  []wire.Epoch
	Master  string
	Port    uint16
	At      int64
	Starts  uint32 // how many attempts were started, this one included
	Ends    map[uint32]*detail
	Fault   *RecGangFault
	Over    bool
}

type jobD struct {
	ID        wire.JobID
	Token     string
	Spec      wire.JobSpec
	Submitted int64
	Started   int64
	Machine   []byte // its snapshot, only while encoded
	Done      rangeMap[fate]
	Stands    rangeMap[standing]
	Spawns    map[uint32]*jobs.Spawn
	Gangs     map[uint32]*gangD
	Details   map[uint32]*detail
	Told      map[uint32]toldD
	Checks    map[uint32]*checkD
	Cancel    *RecJobCancel
	Unwanted  map[uint32]bool // tasks that were cancelled one by one
	Good      uint32
	Bad       uint32
	Cancelled uint32
	Losses    uint32
	Restarts  uint32
	Logs      []LogPart
	LogsDone  bool
	State     wire.State // 0 while it is not over
	Code      int32
	Cause     string
	EndedAt   int64
	Tasks     uint32 // known when it ended
	Reported  map[uint32]reportD
	Learned   learned

	m jobs.Machine // nil once over, unless it has a table
}

// NewDurable is the Durable of an empty journal.
func NewDurable(machines map[wire.Kind]Maker) *Durable {
	d := &Durable{machines: machines}
	d.st.make()
	return d
}

func (s *state) make() {
	if s.Chains == nil {
		s.Chains = map[string]*chainD{}
	}
	if s.Subs == nil {
		s.Subs = map[string]*subD{}
	}
	if s.Nodes == nil {
		s.Nodes = map[wire.NodeID]*nodeD{}
	}
	if s.Jobs == nil {
		s.Jobs = map[wire.JobID]*jobD{}
	}
	if s.Actors == nil {
		s.Actors = map[wire.ObjectID]*actorD{}
	}
	if s.Groups == nil {
		s.Groups = map[wire.GroupID]*RecGroup{}
	}
	if s.Tokens == nil {
		s.Tokens = map[string]wire.JobID{}
	}
}

// empty reports whether something is missing that a snapshot always has.
func (s *state) empty() bool {
	for _, x := range s.Subs {
		if x == nil || slices.Contains(x.Allocs, nil) || len(x.Nodes) != len(x.Epochs) {
			return true
		}
	}
	for _, n := range s.Nodes {
		if n == nil {
			return true
		}
	}
	for _, j := range s.Jobs {
		if j == nil || hasNil(j.Spawns) || hasNil(j.Gangs) || hasNil(j.Details) || hasNil(j.Checks) {
			return true
		}
		for _, g := range j.Gangs {
			if hasNil(g.Ends) || len(g.Nodes) != len(g.Epochs) {
				return true
			}
		}
	}
	if hasNil(s.Actors) {
		return true
	}
	for _, g := range s.Groups {
		if g == nil || len(g.Spec.Bundles) == 0 {
			return true
		}
	}
	for _, id := range s.Ended {
		if s.Jobs[id] == nil {
			return true
		}
	}
	return false
}

func hasNil[K comparable, V any](m map[K]*V) bool {
	for _, v := range m {
		if v == nil {
			return true
		}
	}
	return false
}

func (j *jobD) make() {
	if j.Spawns == nil {
		j.Spawns = map[uint32]*jobs.Spawn{}
	}
	if j.Gangs == nil {
		j.Gangs = map[uint32]*gangD{}
	}
	if j.Details == nil {
		j.Details = map[uint32]*detail{}
	}
	if j.Told == nil {
		j.Told = map[uint32]toldD{}
	}
	if j.Reported == nil {
		j.Reported = map[uint32]reportD{}
	}
	if j.Checks == nil {
		j.Checks = map[uint32]*checkD{}
	}
	if j.Unwanted == nil {
		j.Unwanted = map[uint32]bool{}
	}
	for _, g := range j.Gangs {
		if g.Ends == nil {
			g.Ends = map[uint32]*detail{}
		}
	}
}

// snapshotVersion is the first byte of a snapshot.
const snapshotVersion = 1

// Encode gives a snapshot, the same bytes for equal Durables.
func (d *Durable) Encode() []byte {
	for _, j := range d.st.Jobs {
		if j.m != nil {
			j.Machine = j.m.Snapshot()
		}
	}
	b := append([]byte{snapshotVersion}, wire.Marshal(&d.st)...)
	for _, j := range d.st.Jobs {
		j.Machine = nil
	}
	return b
}

// DecodeDurable reads a snapshot that Encode made.
func DecodeDurable(b []byte, machines map[wire.Kind]Maker) (*Durable, error) {
	if len(b) == 0 || b[0] != snapshotVersion {
		return nil, errs.New(errs.Version, "a snapshot of the cluster's state that this version does not know").
			Hint("it was written by another version of launcher; use that one")
	}
	d := &Durable{machines: machines}
	if err := wire.Unmarshal(b[1:], &d.st); err != nil {
		return nil, err
	}
	d.st.make()
	if d.st.empty() {
		return nil, errs.New(errs.Corrupt, "a snapshot with empty entries")
	}
	for _, j := range d.st.Jobs {
		j.make()
		if j.State != 0 && len(j.Machine) == 0 {
			continue
		}
		m, err := d.machine(j.Spec, j.Machine)
		if err != nil {
			return nil, errs.Wrap(errs.Unknown, err, "job %d", j.ID)
		}
		j.m, j.Machine = m, nil
	}
	return d, nil
}

// Equal compares two Durables by their snapshots.
func (d *Durable) Equal(o *Durable) bool { return bytes.Equal(d.Encode(), o.Encode()) }

func (d *Durable) machine(spec wire.JobSpec, snapshot []byte) (jobs.Machine, error) {
	mk := d.machines[spec.Kind]
	if mk == nil {
		return nil, errs.New(errs.Unbuilt, "jobs of kind %q are not in this version", spec.Kind)
	}
	return mk(spec, snapshot)
}

// standing gives the attempt of a task that runs or is to run.
func (j *jobD) standing(i uint32) standing {
	if s, ok := j.Stands.get(i); ok {
		return s
	}
	return standing{Attempt: 1}
}

func one(i uint32) wire.Range { return wire.Range{From: i, To: i + 1} }

// isGang reports whether tasks of the job have ranks that live and die together.
func isGang(s *wire.JobSpec) bool { return s.Ranks > 1 || s.Nodes > 0 || s.Train != nil }

// ranger gives the job's ranges when all its tasks are known from the start.
func (j *jobD) ranger() (jobs.Ranger, bool) {
	r, ok := j.m.(jobs.Ranger)
	return r, ok
}

// newest gives the checkpoint that a new attempt starts from.
func (j *jobD) newest(i uint32) (path string, step int64) {
	if c := j.Checks[i]; c != nil {
		for _, n := range slices.Backward(c.List) {
			if !n.Gone {
				return n.Path, n.Step
			}
		}
	}
	return "", 0
}

// Checkpoints lists the committed checkpoints of jobs that are not over.
func (d *Durable) Checkpoints() (out []RecCheckpoint) {
	for _, id := range sortedKeys(d.st.Jobs) {
		if j := d.st.Jobs[id]; !j.State.Terminal() {
			for _, i := range sortedKeys(j.Checks) {
				out = append(out, j.Checks[i].List...)
			}
		}
	}
	return out
}

func (j *jobD) logEnd(n wire.NodeID, e wire.Epoch, end int64) {
	for k := range j.Logs {
		if p := &j.Logs[k]; p.Node == n && p.Epoch == e {
			p.End = max(p.End, end)
			return
		}
	}
	if end > 0 {
		j.Logs = append(j.Logs, LogPart{Node: n, Epoch: e, End: end})
	}
}

// finish ends a job.
func (d *Durable) finish(j *jobD, s wire.State, code int32, cause string, at int64) {
	if j.State != 0 {
		return
	}
	j.State, j.Code, j.Cause, j.EndedAt = s, code, cause, at
	j.Tasks, _ = j.m.Total()
	if s == wire.StateCancelled {
		j.Cancelled = max(j.Tasks, j.Good+j.Bad) - j.Good - j.Bad
	}
	if _, ok := j.m.(jobs.Tabler); !ok {
		j.m = nil
	}
	j.Stands, j.Told, j.Unwanted, j.Reported = rangeMap[standing]{}, map[uint32]toldD{}, map[uint32]bool{}, map[uint32]reportD{}
	if a := j.Spec.Array; a != nil && len(a.Lines) > 10_000 {
		// The lines of a big array are in the record's copy of its spec.
		c := *a
		c.Lines = nil
		j.Spec.Array = &c
	}
	d.st.Ended = append(d.st.Ended, j.ID)
	d.forget()
}

// total counts the job's tasks, also once its machine is gone.
func (j *jobD) total() (uint32, bool) {
	if j.State == 0 {
		return j.m.Total()
	}
	return j.Tasks, true
}

// forget drops the oldest ended jobs beyond what is kept.
func (d *Durable) forget() {
	drop := func(limit int, hidden bool) {
		n := 0
		for _, id := range d.st.Ended {
			if d.st.Jobs[id].Spec.Hidden == hidden {
				n++
			}
		}
		d.st.Ended = slices.DeleteFunc(d.st.Ended, func(id wire.JobID) bool {
			j := d.st.Jobs[id]
			if n <= limit || j.Spec.Hidden != hidden || !j.LogsDone {
				return false
			}
			n--
			delete(d.st.Jobs, id)
			if d.st.Tokens[j.Token] == id {
				delete(d.st.Tokens, j.Token)
			}
			return true
		})
	}
	drop(maxEndedJobs, false)
	drop(maxHiddenEnded, true)
}
