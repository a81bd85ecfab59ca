package wire

import "launcher/internal/errs"

// Requests of the command and the SDKs to the head. One stream per request: one request
// frame, then one or more answer frames (several for Logs and Watch), then the end of
// the stream. An error is a MsgError frame with an errs.Wire.
const (
	MsgError uint16 = 0x0300 // answer: errs.Wire
	MsgOK    uint16 = 0x0301 // answer: the response struct named beside each request

	MsgInfo   uint16 = 0x0310 // InfoRequest -> ClusterInfo
	MsgSubmit uint16 = 0x0311 // Submit -> Submitted
	MsgJobs   uint16 = 0x0312 // JobsRequest -> []JobInfo
	MsgWatch  uint16 = 0x0313 // Watch -> JobInfo, again on every change (at most 10 a second), the last with State.Terminal()
	MsgTasks  uint16 = 0x0314 // TasksRequest -> []TaskInfo
	MsgLogs   uint16 = 0x0315 // LogsRequest -> LogChunk ..., in record order; with Follow until the job has ended and all is sent
	MsgCancel uint16 = 0x0316 // Cancel -> Cancelled
	MsgNodes  uint16 = 0x0317 // NodesRequest -> []NodeInfo
	MsgPools  uint16 = 0x0318 // PoolsRequest -> []PoolInfo
	MsgWhy    uint16 = 0x0319 // Why -> WhyAnswer
	MsgDrain  uint16 = 0x031a // DrainRequest -> struct{}
	MsgDown   uint16 = 0x031b // Down -> DownProgress ..., then the head ends
	MsgTrials uint16 = 0x031c // TrialsRequest -> TrialTable
	MsgUpdate uint16 = 0x031d // Update (a changed spec) -> UpdateAnswer
	MsgQuery  uint16 = 0x031e // Query -> QueryAnswer
)

// InfoRequest asks who is there.
type InfoRequest struct{}

// ClusterInfo is `launcher status` in short.
type ClusterInfo struct {
	Name       string
	SpecPath   string
	SpecText   string // the file as it was given to up
	Version    string
	HeadEpoch  Epoch
	HeadPID    int
	HeadHost   string
	Started    int64 // unix ns of the cluster
	Recovering bool  // a restarted head still waits for agents it knows
	Pools      []PoolInfo
	Nodes      []NodeInfo
	Jobs       map[string]int // state -> number
	Total      Resources
	Free       Resources
	Uses       []JobUse // what each job and program has of the cluster, the most first
	Trouble    string   // what keeps the head from taking work, such as a full disk; "" = nothing
	Broker     string   // that and since when new nodes must wait for the broker; "" = they need not
	Followers  []FollowerInfo
	HeadNode   NodeID // the node of the allocation that the head is in; "" = none
	HeadMoves  int    // how often it has moved
	HeadMoved  int64  // when it last did
	HeadWhy    string // why it is where it is
}

// FollowerInfo is a node that keeps a copy of the head's journal.
type FollowerInfo struct {
	Node   NodeID
	Host   string
	Behind uint64 // records that it does not have yet
	Late   bool   // it did not keep up and is left alone for a while: it has no copy that counts
	Why    string // what keeps it from having a copy; it is asked again now and then
	Trees  string // what keeps it from having the working directories of jobs
}

// State of a job, task or trial. Order matters: everything from StateDone on is terminal.
type State uint8

const (
	StateUnknown State = iota
	StateWaiting       // accepted, nothing runs
	StateRunning
	StateStopping // being cancelled
	StateDone     // ended well
	StateFailed
	StateCancelled
	StateLost
)

var stateNames = []string{"unknown", "waiting", "running", "stopping", "done", "failed", "cancelled", "lost"}

// String is the stable name used in tables and --json.
func (s State) String() string { return stateNames[min(int(s), len(stateNames)-1)] }

// Terminal reports whether nothing more will happen.
func (s State) Terminal() bool { return s >= StateDone }

// Submit hands in a job. Token makes it idempotent: the same token gives the same job,
// also after the head restarted.
type Submit struct {
	Token string
	Spec  JobSpec
}

type Submitted struct{ Job JobID }

type JobsRequest struct{ All bool } // All: ended ones too

// JobInfo is one line of `launcher jobs`.
type JobInfo struct {
	ID        JobID
	Name      string
	Kind      Kind
	State     State
	Tasks     uint32 // known so far; a sweep grows
	Waiting   uint32
	Running   uint32
	Done      uint32
	Failed    uint32
	Cancelled uint32
	Lost      uint32 // attempts lost with a worker or node and run again
	Restarts  uint32
	ExitCode  int32
	Cause     string // why it failed, in a line; names task, rank and node
	Submitted int64
	Started   int64
	Ended     int64
	Command   []string
	Dir       string
	Best      *Trial             // sweeps
	Metrics   map[string]float64 // newest report of rank 0 (train)
	Step      int64
	Version   uint64    // grows with each change
	LogsDone  bool      // all output of ended tasks is in the record
	Held      string    // why its processes wait although they run: a node cannot write their output
	Uses      Resources // what it has of the cluster now, with what its programs run
	Outputs   *Outputs  // what came back of what its tasks wrote; nil = nothing was to
}

type Watch struct {
	Job     JobID
	Version uint64 // answer at once when the job's version is higher
}

type TasksRequest struct {
	Job           JobID
	Index         *uint32
	States        []State
	Offset, Limit int
}

// TaskInfo is one line of `launcher tasks`.
type TaskInfo struct {
	Task     Task
	Attempt  Attempt
	State    State
	Node     NodeID     // of rank 0
	Ranks    []RankInfo // gangs
	ExitCode int32
	Reason   Reason
	Cause    string
	Started  int64
	Ended    int64
	Params   string // JSON, sweeps
	Line     string
}

type RankInfo struct {
	Rank  uint32
	Node  NodeID
	State State
	Code  int32
}

// LogsRequest streams output out of the record. Task and Rank -1 = all.
type LogsRequest struct {
	Job    JobID
	Task   int64
	Rank   int64
	Offset int64 // in the job's log; chunks below are skipped
	Follow bool
}

// LogChunk is a piece of one process's output.
type LogChunk struct {
	Proc   Proc
	Node   NodeID
	Stream uint8 // 1 stdout, 2 stderr
	Time   int64
	Offset int64 // of the next chunk in the job's log: where to go on
	Data   []byte
	Note   string // not output: launcher says that output was dropped or is damaged here; Data is empty
}

type Cancel struct {
	Job   JobID
	Task  *uint32
	Grace int64 // -1 = the job's own
}
type Cancelled struct{ Stopped uint32 }

type NodesRequest struct{}

// NodeInfo is one line of `launcher nodes`.
type NodeInfo struct {
	ID       NodeID
	Epoch    Epoch
	Pool     string
	Host     string
	Addr     string
	State    string // joining | up | suspect | draining | lost | gone
	Total    Resources
	Free     Resources
	GPUs     []GPU
	Running  uint32
	Queued   uint32
	Load1    float64
	MemFree  int64
	Restarts uint32
	Since    int64
	Seen     int64
	Deadline int64
	Clock    int64 // its clock minus the head's, measured at join, nanoseconds
	PID      int
	Python   string
	Route    string // to the head: direct | ssh | slurm; and how it reaches nodes that it cannot reach itself
	Rate     int64  // as in Beat
	Taken    string // what of it other people have, and who
	Why      string
	Number   uint32 // of this life of it (Welcome.Number); 0 before it joined
	Topology Topology
}

type PoolsRequest struct{}

// PoolInfo is one line of `launcher pools`.
type PoolInfo struct {
	Name     string
	Backend  string
	Min, Max int
	Up       int
	Pending  int // asked for, not joined
	Failed   int
	Wanted   int
	Why      string
	Failures []NodeFailure // of pools that are lists of machines
	Final    bool          // what Why says will go on until something is changed
	Apart    bool          // its nodes may not see the files of where the cluster was brought up
}

// NodeFailure is a machine of a pool that does not come at the moment.
type NodeFailure struct {
	Node  NodeID
	Place string
	Why   string
	Tries int
	Next  int64 // it is asked for again then, unix nanoseconds
	Final bool  // trying again will help only after a change
}

type Why struct {
	Job  JobID
	Task *uint32
	Pool string
}
type WhyAnswer struct{ Lines []string }

type DrainRequest struct {
	Node     NodeID
	Simulate bool // as a preemption would: work is told to leave, deadline Grace
	Grace    int64
}

type Down struct {
	Drain bool
	Grace int64
}

// DownLeftFile names, in the state directory of a cluster that is down, the nodes whose end
// nothing confirmed, one a line. The journal knows them: the next head goes on with them.
const DownLeftFile = "down.left"

type DownProgress struct {
	Nodes int // still up
	Text  string
	Final bool
}

type TrialsRequest struct{ Job JobID }

// Trial is one configuration of a sweep.
type Trial struct {
	Index   uint32
	State   State
	Params  map[string]any
	Metric  *float64 // newest value of the sweep's metric
	Best    *float64
	Step    int64
	Pruned  bool
	Code    int32
	Started int64
	Ended   int64
}

// TrialTable is `launcher sweep show`.
type TrialTable struct {
	Job      JobInfo
	Metric   string
	Maximize bool
	Trials   []Trial
	Units    int64 // training units (steps) spent over all trials
}

// Update hands a changed spec to a running cluster. Apply = false only prints.
type Update struct {
	SpecText string
	SpecPath string
	Pools    []Pool
	Apply    bool
}
type UpdateAnswer struct {
	Changes []string // one line each
	Removes []NodeID // nodes that would end
	Stops   uint32   // running tasks that would be stopped
}

// Query asks agents what only they know (tasks, objects, what their time went into): the
// head passes it on and gathers the answers. What names the question, Args is its
// argument, JSON. Each node has QueryBound to answer.
type Query struct {
	What string
	Node NodeID // "" = all
	Args []byte
}

// QueryAnswer has an entry for every node that was asked.
type QueryAnswer struct{ Nodes map[NodeID]NodeAnswer }

// NodeAnswer is what a node answered: JSON, or why there is none.
type NodeAnswer struct {
	JSON []byte
	Err  *errs.Wire
}

// Pool is what the head needs to know of a pool; the backend's own keys stay opaque to it.
type Pool struct {
	Name      string
	Backend   string
	Min, Max  int
	Idle      int64 // 0 = never given back
	Hold      bool
	Setup     []string
	Env       []string
	Python    string
	Container string
	Resources *Resources // instead of what detection finds
	Labels    map[string]string
	Share     string
	Options   []byte   // msgpack of the backend's own table, decoded by the backend
	Places    []string // particular machines, for backends that have such: node NAME-i is the i-th; "" = none any more
	Total     int64    // the chain of allocations ends so long after its first node came, nanoseconds; 0 = never
	Until     string   // it ends at this time of day or at this time, as the spec has it
	UntilAt   int64    // which is this, unix nanoseconds; 0 = never
	MaxJobs   int      // most allocations of the chain; 0 = any number
	PerAlloc  int      // most nodes of one allocation; 0 = any number
	Apart     bool     // its nodes may not see the files of where the cluster was brought up
	Lasts     int64    // the most that an allocation lasts, nanoseconds; 0 = not known
}

// ErrorFrame is the body of MsgError.
type ErrorFrame = errs.Wire
