package wire

import (
	"fmt"
	"strconv"
	"strings"

	"launcher/internal/errs"
)

// NodeID names a node for the life of a cluster: POOL-NUMBER, for example "local-0".
// A node that comes back (a new supervisor on the same place) keeps its name and gets
// a higher Epoch.
type NodeID string

// Epoch counts the lives of a node (one per supervisor) or of a head (one per start).
// What carries an older epoch than the receiver knows is refused.
type Epoch uint64

// JobID numbers the jobs of a cluster from 1, in the order they were accepted.
type JobID uint32

// Task is one element of a job: the command of a run (index 0), an element of an
// array, the gang of a training, a trial of a sweep. A task has one rank or, when it
// is a gang, several; they live and die together.
type Task struct {
	Job   JobID
	Index uint32
}

// String is the user's form, JOB.INDEX, also the value of LAUNCHER_TASK_ID.
func (t Task) String() string { return fmt.Sprintf("%d.%d", t.Job, t.Index) }

// ParseTask reads JOB or JOB.INDEX.
func ParseTask(s string) (t Task, hasIndex bool, err error) {
	j, i, hasIndex := strings.Cut(s, ".")
	job, err := strconv.ParseUint(j, 10, 32)
	if err == nil && hasIndex {
		var idx uint64
		idx, err = strconv.ParseUint(i, 10, 32)
		t.Index = uint32(idx)
	}
	if err != nil || job == 0 {
		return Task{}, false, errs.New(errs.Invalid, "%q is not a job or task", s).Hint("jobs are written 7, their tasks 7.12; `launcher jobs` lists them")
	}
	t.Job = JobID(job)
	return t, hasIndex, nil
}

// Attempt numbers the runs of one task from 1. The pair (Task, Attempt) is unique for
// ever; results and reports of any but the newest attempt are refused (errs.Fenced).
type Attempt uint32

// Try is one attempt of a task.
type Try struct {
	Task
	Attempt Attempt
}

func (t Try) String() string { return fmt.Sprintf("%s#%d", t.Task, t.Attempt) }

// Proc is one process of a try: its rank, 0 for a task that is no gang.
type Proc struct {
	Try
	Rank uint32
}

func (p Proc) String() string { return fmt.Sprintf("%s/%d", p.Try, p.Rank) }

// Range is the half-open interval [From, To) of task indices.
type Range struct{ From, To uint32 }

// Len is the number of indices in r.
func (r Range) Len() int { return int(r.To - r.From) }
