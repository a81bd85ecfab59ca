// Package jobs is the contract between the head's core and the kinds of work: pure
// state machines that decide which tasks a job has, what an ended task means, and when
// the job is over. One sub-package per kind (run, train, sweep). No I/O, no clock.
package jobs

import "launcher/wire"

// Machine is the decision part of one job. The head's core calls it in the order of its
// journal, so that replaying the journal gives the same machine: it must be
// deterministic, and Snapshot/Restore must round-trip.
type Machine interface {
	// Next gives up to max tasks that may run now; it is called again after every
	// change. Each task is given once. total is how many tasks are known so far.
	Next(max int) []Spawn
	// Total is the number of tasks known so far, and whether it is final.
	Total() (n uint32, final bool)
	// Ended says that the newest attempt of a task ended. It is called once per attempt.
	Ended(e End) Verdict
	// Report takes a task's report (rank 0 of a gang) and says whether it should go on,
	// and which other tasks should leave.
	Report(r wire.Report) Advice
	// Over says whether the job has ended, and how.
	Over() (state wire.State, code int32, cause string, over bool)
	// Snapshot is the machine's durable state.
	Snapshot() []byte
}

// Spawn is a task to run.
type Spawn struct {
	Index   uint32
	Params  []byte   // JSON object, or nil
	Command []string // nil = the job's
	Line    string
}

// End is how an attempt of a task ended. Lost means that no exit code is known: its
// node or worker died; such attempts are re-run by the core without asking the machine,
// up to its own bound, after which Ended is called with Lost set.
type End struct {
	Index   uint32
	Attempt wire.Attempt
	Code    int32
	Reason  wire.Reason
	Lost    bool
	Left    bool   // exit code 75 of an attempt that was told to leave or has committed a checkpoint
	Rank    uint32 // the rank at fault, of a gang
	Cause   string
	Time    int64
}

// Verdict is what becomes of a task.
type Verdict uint8

const (
	Done   Verdict = iota // it is over: ended well
	Failed                // it is over: failed
	Retry                 // run it again, next attempt
	Pruned                // it is over: stopped on purpose
)

// Advice answers a report.
type Advice struct {
	Leave wire.LeaveReason
	Stop  []uint32 // other tasks to be told to leave (pruned)
}

// Optional interfaces. A machine implements what fits it.

// Ranger is implemented by machines whose tasks are all known from the start and need
// nothing of their own beyond the spec (run, array): the core takes the index ranges
// once, keeps them as ranges, and never calls Next.
type Ranger interface{ Ranges() []wire.Range }

// Forgetful is implemented by machines whose Report changes nothing that Snapshot or a
// later verdict would show, so that the core need not journal reports.
type Forgetful interface{ Forgetful() }

// Tabler is implemented by machines with a table of trials. The machine fills Metric,
// Maximize, Units and of each trial what it knows (Params, Metric, Best, Step, Pruned);
// the core fills in the job, states, exit codes and times.
type Tabler interface{ Table() wire.TrialTable }
