package wire

// Kind is the kind of a job.
type Kind string

const (
	KindRun   Kind = "run"
	KindArray Kind = "array"
	KindTrain Kind = "train"
	KindSweep Kind = "sweep"
	KindMap   Kind = "map"
)

// JobSpec is a job as the head accepts it: defaults filled in, paths absolute, values
// checked. Durations are nanoseconds. It is journalled whole, so fields are append-only.
type JobSpec struct {
	Name     string
	Kind     Kind
	Command  []string // argv; array: "{}" is replaced by the element's line; sweep: expanded per trial (Sweep.Command)
	Dir      string   // absolute working directory on the submitter's machine
	DirToken string   // what tells whether a node sees the same directory (package bundle); "" = do not check
	Env      []string // KEY=VALUE, added to the node's environment
	KeepEnv  bool     // not used; Keep says more

	Resources   Resources // of one rank
	TimeLimit   int64     // 0 = none; past it: SIGTERM, Grace, SIGKILL, exit code 124
	TimeRequest int64     // what placement assumes; 0 = TimeLimit
	Grace       int64     // between SIGTERM and SIGKILL
	RetryFailed int       // how often a non-zero exit is run again
	Priority    int
	Exclusive   bool   // never in two places, see DESIGN on exclusive work
	Pool        string // "" = any
	Node        NodeID // "" = any; set by `launcher exec`
	Hidden      bool   // not listed by `launcher jobs` (exec)

	// Gang shape. Ranks is per task and at least 1.
	Ranks        uint32
	RanksPerNode uint32 // 0 = as many as fit
	Nodes        uint32 // 0 = any number; otherwise exactly so many nodes with RanksPerNode each

	Array *ArraySpec
	Train *TrainSpec
	Sweep *SweepSpec

	Outputs []string // globs that come back where Dir is not shared
	Limits  Limits   // what the job may use at a time, its programs' tasks included
	DirSum  string   // what the head has of Dir for nodes that do not see it (Tree.Sum); "" = nothing
	Keep    []string // of which launchers around us the processes see variables (Outer)
	Sockets bool     // of a gang: its ranks open sockets to each other themselves
}

// ArraySpec says which elements an array has.
type ArraySpec struct {
	Ranges []Range  // sorted, disjoint
	Lines  []string // with each_line: Lines[i] belongs to index i, and Ranges is [0, len)
}

// TrainSpec is what a training adds to a gang.
type TrainSpec struct {
	MinWorkers    uint32 // = Workers unless elastic
	Workers       uint32
	MaxRestarts   int    // gang restarts after a failure; losses of nodes and planned moves are free
	Checkpoints   string // absolute directory; "" = the job's record
	Keep          int    // committed checkpoints kept, at least 1
	Score         string // "" = newest; "-loss" or "+accuracy": the best is kept besides the newest
	Deterministic bool
}

// SweepSpec describes a search. Parameters are in the order of the file.
type SweepSpec struct {
	Method     string // grid | random (others are refused by configs until built)
	Metric     string
	Maximize   bool
	Target     *float64 // stop the sweep when reached
	RunCap     int      // 0 = the whole grid; random needs one
	Concurrent int      // 0 = as many as fit
	Seed       uint64
	Early      *EarlySpec
	Parameters []Parameter
	Command    []string // W&B-style template with ${macros}; JobSpec.Command is its default expansion
	Program    string
}

// EarlySpec is early termination.
type EarlySpec struct {
	Type    string // asha
	MinIter int64
	MaxIter int64
	Eta     int64
}

// Parameter is one dimension of a search space.
type Parameter struct {
	Name         string // nested names are dotted
	Distribution string // constant | categorical | uniform | log_uniform_values | int_uniform | q_uniform | ... (configs documents each)
	Values       []any  // constant (1), categorical
	Probs        []float64
	Min, Max     float64
	Q            float64
	Mu, Sigma    float64
}
