// Package spool takes the output of a node's processes to disk and gives it out to
// whoever ships it to the cluster's record.
//
// Each job has one append-only stream of wire log frames, kept in segment files. An
// offset in it is counted from the job's first byte on this node and never changes;
// segments whose every byte is acknowledged are deleted.
//
// The data goes from pipe to file by splice(2), behind a header written before it: what
// has left the pipe is in the file, and what has not is in the pipe, whose read end the
// supervisor keeps too. So an agent that is killed at any instant loses nothing: the
// next one gets the pipes again, and Open mends the last frame (its header counts what
// did arrive).
//
// One goroutine serves all pipes, a bounded piece of each in turn, so a flood in one
// cannot starve another. When the disk is full, the output of the job concerned waits in
// its pipe: its processes block in write(2), others go on, and an event says so.
package spool

import (
	"fmt"
	"strings"

	"launcher/internal/errs"
	"launcher/wire"
)

// EventKind is what an Event tells.
type EventKind uint8

const (
	// Drained: all output of Proc is in the spool, whose length was End then. It comes
	// once per Add or AddStored of the process (see Exited for one without), after which
	// nothing more of it is read.
	Drained EventKind = iota + 1
	// Paused: the output of Job waits because Err; tried again until Failed.
	Paused
	// Resumed: it flows again.
	Resumed
	// Failed: it could not be written for Config.GiveUp. Its pipes stay full until its
	// processes are ended (Exited); what was in them then is Lost.
	Failed
)

// Event is news from the spool.
type Event struct {
	Kind EventKind
	Job  wire.JobID
	Proc wire.Proc // Drained
	End  int64     // Drained
	Lost int64     // Drained, after Failed: bytes that could not be written
	Err  error     // Paused, Failed
}

// Streams of a process.
const (
	Stdout uint8 = 1
	Stderr uint8 = 2
)

// FDName is the name under which the supervisor keeps the read end of a process's
// output: "out/JOB.INDEX#ATTEMPT/RANK/STREAM".
func FDName(p wire.Proc, stream uint8) string {
	return fmt.Sprintf("out/%d.%d#%d/%d/%d", p.Job, p.Index, p.Attempt, p.Rank, stream)
}

// ParseFDName is the inverse of FDName; ok is false for other descriptors' names.
func ParseFDName(name string) (p wire.Proc, stream uint8, ok bool) {
	if !strings.HasPrefix(name, "out/") {
		return p, 0, false
	}
	n, err := fmt.Sscanf(name, "out/%d.%d#%d/%d/%d", &p.Job, &p.Index, &p.Attempt, &p.Rank, &stream)
	if err != nil || n != 5 || stream < Stdout || stream > Stderr || FDName(p, stream) != name {
		return wire.Proc{}, 0, false
	}
	return p, stream, true
}

// JobState is where the stream of a job stands.
type JobState struct {
	Job    wire.JobID
	Base   int64 // the first byte that can still be read
	End    int64 // all bytes before it are written
	Paused error // why nothing more is written, nil = it is
}

func errNoJob(job wire.JobID) error {
	return errs.New(errs.NotFound, "job %d has no output on this node", job)
}
