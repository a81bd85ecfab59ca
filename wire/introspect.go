package wire

// What agents answer to a Query about tasks and objects: Args is one of the queries
// below, the answer the struct beside it, both JSON. The command merges the nodes'
// answers. Times are unix nanoseconds, ids lower-case hex; 0 and "" mean that there is
// none.
const (
	QueryTasks    = "tasks"    // SDKTaskQuery -> SDKTasks
	QueryObjects  = "objects"  // SDKObjectQuery -> SDKObjects
	QueryTimeline = "timeline" // TimelineQuery -> Timeline
	QueryWhy      = "why"      // SDKWhyQuery -> SDKWhy
	QueryActors   = "actors"   // nothing -> []SDKActor
	QueryMetrics  = "metrics"  // nothing -> a string: Prometheus's text
	QueryWorkers  = "workers"  // nothing -> []SDKProcess
)

// States of an SDK task, as its owner's agent knows it.
const (
	TaskWaiting   = "waiting" // for an argument
	TaskQueued    = "queued"  // for room
	TaskRunning   = "running" // or on its way to a worker
	TaskBlocked   = "blocked" // it runs, and waits for objects; its room is lent
	TaskDone      = "done"
	TaskFailed    = "failed"
	TaskCancelled = "cancelled"
)

// SDKTaskQuery asks a node for the tasks that it owns. Empty fields match all.
type SDKTaskQuery struct {
	ID     string   `json:"id,omitempty"` // a task, or an object: the task that makes it
	Job    JobID    `json:"job,omitempty"`
	Name   string   `json:"name,omitempty"`
	States []string `json:"states,omitempty"` // none: those that have not ended
	Actors bool     `json:"actors,omitempty"` // the creations of actors that live, too
	Limit  int      `json:"limit"`            // list at most so many; counts are of all that are not away
}

// SDKTasks are the tasks that match, those that run first, then in the order of their
// submission.
type SDKTasks struct {
	Tasks  []SDKTask      `json:"tasks"`
	Counts []SDKTaskCount `json:"counts"`
}

// SDKTask is one line of `launcher tasks`.
type SDKTask struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Job       JobID    `json:"job"`
	State     string   `json:"state"`
	Attempt   uint32   `json:"attempt"`
	Node      NodeID   `json:"node,omitempty"`      // where it runs or ran
	Away      bool     `json:"away,omitempty"`      // another node has it, whose line says more
	Worker    int      `json:"worker,omitempty"`    // pid
	Parent    string   `json:"parent,omitempty"`    // the task that submitted it
	WaitsFor  []string `json:"waits_for,omitempty"` // objects, the first few
	Why       string   `json:"why,omitempty"`       // what it waits for, or how it failed, in a line
	Submitted int64    `json:"submitted"`
	Started   int64    `json:"started,omitempty"`
	Ended     int64    `json:"ended,omitempty"`
	Actor     string   `json:"actor,omitempty"` // whose call it is; of a creation, its own id
}

// SDKActor is an actor as its owner knows it, or as the node where it lives does (Hosted).
type SDKActor struct {
	ID        string `json:"id"`
	Class     string `json:"class"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Job       JobID  `json:"job"`
	State     string `json:"state"` // pending | alive | restarting | dead
	Why       string `json:"why,omitempty"`
	Worker    int    `json:"worker,omitempty"` // pid, where it lives
	Lives     uint32 `json:"lives"`
	Detached  bool   `json:"detached,omitempty"`
	Hosted    bool   `json:"hosted,omitempty"`
}

// States of an actor.
const (
	ActorPending    = "pending"
	ActorAlive      = "alive"
	ActorRestarting = "restarting"
	ActorDead       = "dead"
)

// SDKTaskCount counts the tasks of a name in a state.
type SDKTaskCount struct {
	Name  string `json:"name"`
	State string `json:"state"`
	Count int64  `json:"count"`
	Why   string `json:"why,omitempty"` // of the oldest of them
}

// SDKObjectQuery asks a node for the objects that it owns or holds.
type SDKObjectQuery struct {
	ID    string `json:"id,omitempty"`
	Job   JobID  `json:"job,omitempty"`
	Limit int    `json:"limit"` // list at most so many, the largest first; totals are of all
}

// SDKObjects are the objects of a node and what its memory is used for.
type SDKObjects struct {
	Objects  []SDKObject `json:"objects"`
	Count    int64       `json:"count"`
	Resident int64       `json:"resident"` // bytes of sealed objects in memory
	Spilled  int64       `json:"spilled"`  // bytes on disk
	Inline   int64       `json:"inline"`   // bytes of small objects in the agent
	Segments int64       `json:"segments"` // bytes of memory that producers have, free parts included
	Limit    int64       `json:"limit"`    // bytes that segments may take
	Pinned   int64       `json:"pinned"`   // bytes of objects that processes read in place
}

// States of an object.
const (
	ObjectPending   = "pending" // its task has not made it yet
	ObjectInline    = "inline"
	ObjectResident  = "resident"
	ObjectSpilled   = "spilled"
	ObjectElsewhere = "elsewhere" // its bytes are on other nodes
	ObjectLost      = "lost"
	ObjectError     = "error" // its value is the error of its task
)

// SDKObject is one line of `launcher objects`.
type SDKObject struct {
	ID      string   `json:"id"`
	Job     JobID    `json:"job"`
	Size    int64    `json:"size"`
	State   string   `json:"state"`
	Copy    bool     `json:"copy,omitempty"`  // owned by another node: it may be dropped for room
	Nodes   []NodeID `json:"nodes,omitempty"` // others that have it
	At      []uint32 `json:"-"`               // the same, as numbers of their lives
	Made    string   `json:"made,omitempty"`  // name of the task that made it; "put"
	Age     int64    `json:"age,omitempty"`   // nanoseconds since it was made
	Holders []Holder `json:"holders"`         // why it is alive
}

// Holder is a reason for an object to be alive.
type Holder struct {
	What  string `json:"what"` // driver | worker | task (argument) | object (inside its value) | node | lineage | pin
	Who   string `json:"who"`  // "pid 4242", id of a task or object, node
	Count int64  `json:"count"`
}

// TimelineQuery asks a node for what its workers did.
type TimelineQuery struct {
	Job   JobID `json:"job,omitempty"`
	Since int64 `json:"since,omitempty"`
	Limit int   `json:"limit"` // the newest so many
}

// Timeline is the ends of tasks that a node keeps, oldest first.
type Timeline struct {
	Events  []TaskEvent `json:"events"`
	Dropped int64       `json:"dropped"` // older ones that it keeps no longer
}

// TaskEvent is a task that ran in a worker of the node.
type TaskEvent struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Job       JobID  `json:"job"`
	Attempt   uint32 `json:"attempt"`
	Worker    int    `json:"worker"` // pid
	State     string `json:"state"`  // done | failed | cancelled
	Submitted int64  `json:"submitted,omitempty"`
	Start     int64  `json:"start"`
	End       int64  `json:"end"`
}

// SDKWhyQuery asks what a task, or the task of an object, waits for.
type SDKWhyQuery struct {
	ID string `json:"id"`
}

// SDKWhy is what the owner says, in lines, and the node that runs the task; others answer with
// none.
type SDKWhy struct {
	Lines []string `json:"lines"`
	Away  bool     `json:"away,omitempty"` // another node has the task and says more
}

// SDKProcess is a driver or worker of a node.
type SDKProcess struct {
	ID   string `json:"id"`
	Kind string `json:"kind"` // driver | worker
	PID  int    `json:"pid"`
	Job  string `json:"job"`
	Name string `json:"name"`
}
