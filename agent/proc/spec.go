package proc

// Limit is a resource limit (unix.RLIMIT_*) for a new process.
type Limit struct {
	Resource   int
	Soft, Hard uint64
}

// Spec is a process to start.
type Spec struct {
	Argv   []string
	Env    []string // all of it
	Dir    string   // absolute
	Files  []int    // descriptors for 0, 1, 2, ...; -1 = closed
	CPUs   []int    // nil = those of the starter
	Limits []Limit  // on top of the inherited ones
	OOM    int      // added to the starter's own oom_score_adj
	// Outlive leaves it alive when the starter's thread dies; all others are killed then.
	Outlive bool
}
