// Package lint holds the rules of the tree as tests: who may import whom and why, what
// the two pure cores must not touch, that every package says what it is, and that no
// file is too long to read in one sitting.
package lint

// module is the prefix of our own import paths.
const module = "launcher"

// arrow allows a folder (and what lies below it, unless that has its own arrows) to
// import another, for a reason.
type arrow struct{ from, to, why string }

// everyone may import these.
var shared = []string{"internal/errs", "wire"}

// arrows is the whole table. What is not here must not be imported.
var arrows = []arrow{
	{"wire/session", "wire/secure", "a connection is authenticated"},
	{"wire/session", "internal/sockpath", "socket paths have a limit"},
	{"wire/follow", "wire/reclog", "a copy has the files of a journal"},
	{"wire/follow", "internal/disk", "names are made safe"},
	{"shm", "internal/logx", "events are logged"},
	{"shm", "shm", "its own parts"},
	{"collectives", "shm", "ranks of a node meet in shared memory"},
	{"collectives", "collectives", "its own parts"},
	{"agent/core", "wire", "messages are its events"},
	{"agent", "wire/secure", "it joins and renews its certificate"},
	{"agent", "wire/session", "it talks to the head and to peers"},
	{"agent", "wire/bundle", "directories come from machines that it shares no files with"},
	{"head", "wire/bundle", "checkpoints come and go the same way"},
	{"agent", "wire/sdk", "it talks to programs about objects and tasks"},
	{"agent", "wire/reclog", "its state is a record log in memory"},
	{"agent", "wire/follow", "it keeps a copy of the head's journal"},
	{"agent", "shm", "it makes and passes memory"},
	{"agent", "collectives", "it owns groups and the traffic between nodes"},
	{"agent", "agent", "its own parts"},
	{"agent", "configs", "sizes are written as in specs"},
	{"agent", "python", "it supplies programs with the SDK of its own version"},
	{"agent", "internal/logx", "it logs"},
	{"agent", "internal/clock", "it drives its core with a clock"},
	{"agent", "internal/disk", "names of checkpoints are made safe"},
	{"agent", "internal/sockpath", "socket paths have a limit"},
	{"head/core", "jobs", "jobs are machines"},
	{"head", "wire/secure", "it is the cluster's authority"},
	{"head", "wire/session", "agents and commands talk to it"},
	{"head", "wire/reclog", "the journal's framing"},
	{"head", "wire/follow", "agents keep copies of its journal"},
	{"head", "jobs", "the contract of jobs"},
	{"head", "backends", "the contract only, never an implementation"},
	{"head", "head", "its own parts"},
	{"head", "internal/logx", "it logs"},
	{"head", "internal/clock", "it drives its core with a clock"},
	{"head", "internal/disk", "names are made safe"},
	{"head", "internal/sockpath", "socket paths have a limit"},
	{"jobs", "jobs", "the contract of jobs"},
	{"configs", "configs", "its own parts"},
	{"backends/all", "backends", "it is the list"},
	{"backends", "backends", "the contract"},
	{"backends/ssh", "internal/hostlist", "lists of hosts are written as in specs"},
	{"configs", "internal/hostlist", "a spec's list of hosts is checked as the backend reads it"},
	{"backends/local", "shm/cgroup", "it divides what this process may use"},
	{"backends/local", "internal/sockpath", "socket paths have a limit"},
	{"backends/ssh/host", "wire/secure", "it asks the nodes on its host as a client"},
	{"backends/ssh", "wire/session", "the broker talks to its process on a host"},
	{"backends/ssh", "wire/follow", "a host gives a new head the copy of the journal that its node kept"},
	{"backends/ssh", "internal/sockpath", "socket paths have a limit"},
	{"backends/slurm", "internal/hostlist", "lists of nodes are written alike"},
	{"backends/slurm", "configs", "sizes and durations are written as in specs"},
	{"backends/slurm", "internal/sockpath", "socket paths have a limit"},
	{"backends/slurm", "wire/session", "who asks for a way to the head, and where"},
	{"broker", "configs", "pools come from specs"},
	{"broker", "wire/bundle", "outputs come to the machine of who submitted"},
	{"broker", "backends", "the contract only"},
	{"broker", "wire/secure", "the link is a client"},
	{"broker", "wire/session", "the link relays"},
	{"broker", "internal/logx", "it logs"},
	{"broker", "internal/sockpath", "socket paths have a limit"},
	{"internal/sim", "head/core", "it links what production links"},
	{"internal/sim", "agent/core", "it links what production links"},
	{"internal/sim", "jobs", "real jobs run in it"},
	{".", "shm", "Go ranks map group memory"},
	{".", "collectives", "Go ranks reduce"},
	{".", "wire/sdk", "programs talk to their node's agent"},
	{".", "internal/sockpath", "socket paths have a limit"},
	{"internal/benchcore", ".", "its workloads are a program's"},
	{"internal/benchcore", "shm/channel", "its actors have channels"},
	{"examples", ".", "programs use the SDK"},
	{"examples", "collectives", "operations are named there"},
	{"examples", "examples", "a program and its data"},
	{"examples/go/gotest", "internal/testkit", "it runs examples in tests"},
	{"internal/testkit", "internal/testkit", "its own parts"},
}

// notFrom are arrows that the table above would allow by prefix but that must not be.
var notFrom = []arrow{
	{"head", "backends/local", "the head knows the contract, not who implements it"},
	{"head", "backends/all", "only the command knows all backends"},
	{"head", "agent", "agent and head never import each other"},
	{"agent", "head", "agent and head never import each other"},
	{"broker", "backends/all", "only the command knows all backends"},
	{"backends/ssh/dial", "backends", "it reaches hosts and knows nothing of clusters"},
	{"broker", "backends/local", "the broker gets a registry"},
}

// impure are the standard packages that the two reactors must not touch: they take
// events and a clock reading in and give effects out.
var impure = map[string]string{
	"time": "the clock comes in as an argument", "os": "no I/O", "net": "no I/O", "sync": "one goroutine owns a core",
	"sync/atomic": "one goroutine owns a core", "os/exec": "no I/O", "io/fs": "no I/O", "log/slog": "effects are logged by the shell",
	"context": "nothing in a core waits", "syscall": "no I/O", "golang.org/x/sys/unix": "no I/O", "math/rand": "seeds come in as arguments", "crypto/rand": "seeds come in as arguments",
}

// maxLines bounds a source file that is no test.
const maxLines = 600
