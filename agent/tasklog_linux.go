package agent

import (
	"context"
	"os"

	"launcher/agent/supervisor"
	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire/reclog"
)

// taskLogName is the name under which the supervisor keeps the log of the tasks' reactor.
const taskLogName = "tasks"

// taskLog is what the tasks' reactor decided, in a memory file that the supervisor holds.
// It is written with one write per batch of frames, before their effects.
type taskLog struct {
	super *supervisor.Client
	log   *reclog.Log
	file  *os.File
	next  int64 // size at which to compact
}

// taskCompactAt is the least size at which the log is replaced by a snapshot.
const taskCompactAt = 16 << 20

// openTaskLog takes the log of an earlier agent up, giving apply its batches, or makes one.
func openTaskLog(ctx context.Context, super *supervisor.Client, f *os.File, apply func(batch []byte) error) (l *taskLog, old bool, err error) {
	l = &taskLog{super: super, next: taskCompactAt}
	if f == nil {
		return l, false, l.replace(ctx, nil)
	}
	l.file = f
	l.log, err = reclog.Open(f, 0, 1, func(_ uint64, b []byte) error { return apply(b) })
	if err != nil {
		f.Close()
		return nil, true, errs.Wrap(errs.Unknown, err, "the tasks of the agent before this one")
	}
	return l, true, nil
}

// append makes a batch safe from the death of this process.
func (l *taskLog) append(batches ...[]byte) error {
	if _, err := l.log.Append(batches...); err != nil {
		return errs.Wrap(errs.Exhausted, err, "the agent's state of tasks cannot be written")
	}
	return nil
}

// long reports whether the log should be replaced by a snapshot.
func (l *taskLog) long() bool { return l.log.End() >= l.next }

// replace begins a new log with a snapshot.
func (l *taskLog) replace(ctx context.Context, snapshot [][]byte) error {
	f, err := shm.CreateFile("launcher-tasks")
	if err != nil {
		return err
	}
	log, err := reclog.Open(f, 0, 1, nil)
	if err == nil && len(snapshot) > 0 {
		_, err = log.Append(snapshot...)
	}
	if err == nil {
		err = l.super.StoreFD(ctx, taskLogName, f)
	}
	if err != nil {
		f.Close()
		return errs.Wrap(errs.Unknown, err, "a new log of tasks")
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.log = f, log
	l.next = max(taskCompactAt, 4*log.End())
	return nil
}
