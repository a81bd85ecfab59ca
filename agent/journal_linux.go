package agent

import (
	"context"
	"log/slog"
	"os"
	"slices"

	"launcher/agent/core"
	"launcher/agent/supervisor"
	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire/reclog"
)

const (
	stateName = "state"
	// compactAt is the size at which the state journal is looked at; it is replaced by a
	// snapshot when that is much smaller.
	compactAt = 4 << 20
)

// journal is the log of the core's records in a memory file that the supervisor holds.
type journal struct {
	super *supervisor.Client
	log   *reclog.Log
	file  *os.File
	state *core.State
	next  int64 // size at which to compact
	buf   []byte
	ends  []int
	parts [][]byte
}

// openJournal takes the journal of an earlier agent up, or makes one.
func openJournal(ctx context.Context, super *supervisor.Client, f *os.File, log *slog.Logger) (*journal, error) {
	j := &journal{super: super, state: core.NewState(), next: compactAt}
	if f == nil {
		return j, j.replace(ctx)
	}
	n := 0
	l, err := reclog.Open(f, 0, 1, func(_ uint64, b []byte) error {
		r, err := core.Decode(slices.Clone(b))
		if err != nil {
			return err
		}
		j.state.Apply(r)
		n++
		return nil
	})
	if err != nil {
		f.Close()
		return nil, errs.Wrap(errs.Unknown, err, "the state of the agent before this one")
	}
	log.Info("state taken over from the agent before", "records", n, "bytes", l.End())
	j.file, j.log = f, l
	return j, nil
}

// append makes records safe from the death of this process.
func (j *journal) append(records []core.Record) error {
	if len(records) == 0 {
		return nil
	}
	j.buf, j.ends, j.parts = j.buf[:0], j.ends[:0], j.parts[:0]
	for _, r := range records {
		j.buf = core.Encode(j.buf, r)
		j.ends = append(j.ends, len(j.buf))
	}
	from := 0
	for _, to := range j.ends {
		j.parts = append(j.parts, j.buf[from:to])
		from = to
	}
	if _, err := j.log.Append(j.parts...); err != nil {
		return errs.Wrap(errs.Exhausted, err, "the agent's state cannot be written")
	}
	return nil
}

// compact replaces the journal by a snapshot of the state when it has grown long.
func (j *journal) compact(ctx context.Context) error {
	if j.log.End() < j.next {
		return nil
	}
	return j.replace(ctx)
}

func (j *journal) replace(ctx context.Context) error {
	f, err := shm.CreateFile("launcher-agent-state")
	if err != nil {
		return err
	}
	l, err := reclog.Open(f, 0, 1, nil)
	old := *j
	if err == nil {
		j.file, j.log = f, l
		err = j.append(j.state.Snapshot())
	}
	if err == nil {
		err = j.super.StoreFD(ctx, stateName, f)
	}
	if err != nil {
		f.Close()
		*j = old
		return errs.Wrap(errs.Unknown, err, "a new state journal")
	}
	if old.file != nil {
		old.file.Close()
	}
	j.next = max(compactAt, 4*l.End())
	return nil
}
