package agent

import (
	"context"
	"os"

	"launcher/agent/supervisor"
	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire/reclog"
)

// memoryLog is a log of records in a memory file that the supervisor holds: what was
// appended is safe from the death of this process. There is one of each reactor.
type memoryLog struct {
	super *supervisor.Client
	name  string // under which the supervisor keeps it, and in messages
	log   *reclog.Log
	file  *os.File
	least int64 // size below which it is not replaced by a snapshot
	next  int64 // size at which it is
}

// newMemoryLog begins a log.
func newMemoryLog(ctx context.Context, super *supervisor.Client, name string, least int64, snapshot [][]byte) (*memoryLog, error) {
	l := &memoryLog{super: super, name: name, least: least}
	return l, l.replace(ctx, snapshot)
}

// takeUpMemoryLog takes the log of an earlier agent up, giving apply its records.
func takeUpMemoryLog(super *supervisor.Client, name string, least int64, f *os.File, apply func(record []byte) error) (*memoryLog, error) {
	log, err := reclog.Open(f, 0, 1, func(_ uint64, b []byte) error { return apply(b) })
	if err != nil {
		f.Close()
		return nil, errs.Wrap(errs.Unknown, err, "the %s of the agent before this one", name)
	}
	return &memoryLog{super: super, name: name, log: log, file: f, least: least, next: least}, nil
}

// append makes records safe, all or none, with one write.
func (l *memoryLog) append(records ...[]byte) error {
	if _, err := l.log.Append(records...); err != nil {
		return errs.Wrap(errs.Exhausted, err, "the agent's %s cannot be written", l.name)
	}
	return nil
}

// long reports whether the log should be replaced by a snapshot.
func (l *memoryLog) long() bool { return l.log.End() >= l.next }

// replace begins a new log with a snapshot; if that fails the old one goes on.
func (l *memoryLog) replace(ctx context.Context, snapshot [][]byte) error {
	f, err := shm.CreateFile("launcher-" + l.name)
	if err != nil {
		return err
	}
	log, err := reclog.Open(f, 0, 1, nil)
	if err == nil && len(snapshot) > 0 {
		_, err = log.Append(snapshot...)
	}
	if err == nil {
		err = l.super.StoreFD(ctx, l.name, f)
	}
	if err != nil {
		f.Close()
		return errs.Wrap(errs.Unknown, err, "a new log of the agent's %s", l.name)
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.log = f, log
	l.next = max(l.least, 4*log.End())
	return nil
}
