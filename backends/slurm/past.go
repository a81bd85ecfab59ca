package slurm

import (
	"context"
	"strings"
	"time"

	"launcher/internal/errs"
)

// recallBound is how long the accounting may take: what it says is only how a job ended.
const recallBound = 10 * time.Second

// forgot reports whether Slurm has no job of a record in its queue, though it should have had
// one: some minutes after a job's end (MinJobAge) the queue knows nothing of it.
func (s *snapshot) forgot(r *record) bool {
	return r.Step == nil && len(s.byName[r.Name]) == 0 && !r.Stopped && !s.at.Before(time.Unix(r.At, 0).Add(inFlight))
}

// recall asks the site's accounting, where there is one, how the jobs ended that the queue has
// forgotten, such as while the head was away; by name.
func (b *Backend) recall(ctx context.Context, s *snapshot, recs []*record) map[string]entry {
	var names []string
	since := time.Now()
	for _, r := range recs {
		if s.forgot(r) {
			names = append(names, r.Name)
			if at := time.Unix(r.At, 0); at.Before(since) {
				since = at
			}
		}
	}
	b.mu.Lock()
	none := b.noBooks
	b.mu.Unlock()
	if len(names) == 0 || none {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, recallBound)
	defer cancel()
	out, err := b.cli.run(ctx, environment(environ(), nil), "", "sacct", "-X", "-n", "-P", "-S", since.Add(-time.Hour).Format("2006-01-02T15:04:05"), "--name", strings.Join(names, ","), "-o", "JobID,State,JobName")
	if err != nil {
		if errs.Is(err, errs.NotFound) || strings.Contains(err.Error(), "disabled") {
			b.mu.Lock()
			b.noBooks = true
			b.mu.Unlock()
		}
		return nil
	}
	return parsePast(out)
}

// parsePast reads what sacct printed. A state may have more words, "CANCELLED by 1000".
func parsePast(text string) map[string]entry {
	past := map[string]entry{}
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), "|", 3)
		if len(f) != 3 {
			continue
		}
		if state, _, _ := strings.Cut(f[1], " "); over(state) {
			past[f[2]] = entry{id: f[0], state: state, reason: "None", name: f[2]}
		}
	}
	return past
}
