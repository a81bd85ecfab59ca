package agent

import (
	"context"
	"log/slog"
	"os"
	"slices"

	"launcher/agent/core"
	"launcher/agent/supervisor"
)

const (
	stateName = "state"
	// compactAt is the size at which the state journal is looked at; it is replaced by a
	// snapshot when that is much smaller.
	compactAt = 4 << 20
)

// journal is the log of the core's records.
type journal struct {
	*memoryLog
	state *core.State
	buf   []byte
	ends  []int
	parts [][]byte
}

// openJournal takes the journal of an earlier agent up, or makes one.
func openJournal(ctx context.Context, super *supervisor.Client, f *os.File, log *slog.Logger) (*journal, error) {
	j := &journal{state: core.NewState()}
	var err error
	if f == nil {
		j.memoryLog, err = newMemoryLog(ctx, super, stateName, compactAt, j.encode(j.state.Snapshot()))
		return j, err
	}
	n := 0
	j.memoryLog, err = takeUpMemoryLog(super, stateName, compactAt, f, func(b []byte) error {
		r, err := core.Decode(slices.Clone(b))
		if err != nil {
			return err
		}
		j.state.Apply(r)
		n++
		return nil
	})
	if err == nil {
		log.Info("state taken over from the agent before", "records", n, "bytes", j.log.End())
	}
	return j, err
}

// encode gives the bytes of records, valid until the next call.
func (j *journal) encode(records []core.Record) [][]byte {
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
	return j.parts
}

// append makes records safe from the death of this process.
func (j *journal) append(records []core.Record) error {
	if len(records) == 0 {
		return nil
	}
	return j.memoryLog.append(j.encode(records)...)
}

// compact replaces the journal by a snapshot of the state when it has grown long.
func (j *journal) compact(ctx context.Context) error {
	if !j.long() {
		return nil
	}
	return j.replace(ctx, j.encode(j.state.Snapshot()))
}
