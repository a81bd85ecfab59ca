package slurm

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"launcher/internal/errs"
	"launcher/internal/hostlist"
)

// entry is a job as squeue shows it.
type entry struct {
	id      string
	state   string
	reason  string
	nodes   string // as Slurm writes lists
	batch   string // where its script runs
	name    string
	comment string
	start   int64 // when it started or is expected to; 0 = nobody knows
	end     int64 // when its time is over; 0 = never, or nobody knows
}

// format is fixed: what a newer Slurm shows by itself changes with its version.
const format = "%A|%T|%r|%N|%B|%S|%e|%k|%j"

// snapshot is all jobs of this user, those that ended some minutes ago included.
type snapshot struct {
	at     time.Time // asked then
	byName map[string][]entry
	byID   map[string]entry
}

func parseQueue(text string) *snapshot {
	s := &snapshot{byName: map[string][]entry{}, byID: map[string]entry{}}
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), "|", 9)
		if len(f) != 9 {
			continue // of a name with a line break, not ours
		}
		e := entry{id: f[0], state: f[1], reason: f[2], nodes: f[3], batch: f[4], start: stamp(f[5]), end: stamp(f[6]), comment: f[7], name: f[8]}
		s.byID[e.id] = e
		s.byName[e.name] = append(s.byName[e.name], e)
	}
	for _, es := range s.byName { // those that are not over first, then the older
		slices.SortStableFunc(es, func(a, b entry) int {
			if x, y := over(a.state), over(b.state); x != y {
				if x {
					return 1
				}
				return -1
			}
			return cmp.Or(cmp.Compare(len(a.id), len(b.id)), cmp.Compare(a.id, b.id))
		})
	}
	return s
}

// stamp reads a time: a number as we ask for, or the form that an old squeue insists on.
func stamp(s string) int64 {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n > 0 {
		return n
	}
	if t, err := time.ParseInLocation("2006-01-02T15:04:05", s, time.Local); err == nil {
		return t.Unix()
	}
	return 0
}

// over reports a state that a job does not leave. One that is COMPLETING still has
// processes.
func over(state string) bool {
	switch state {
	case "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY", "REVOKED", "SPECIAL_EXIT":
		return true
	}
	return false
}

// waitingStates are those of a job that has no nodes, or whose nodes are being booted.
func waiting(state string) bool {
	switch state {
	case "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "EXPEDITING":
		return true
	}
	return false
}

// hostsOf expands a list as Slurm writes it, n[1-2,5],m7.
func hostsOf(list string) ([]string, error) {
	var out []string
	depth, from := 0, 0
	for i := 0; i <= len(list); i++ {
		switch {
		case i == len(list) || list[i] == ',' && depth == 0:
			if i > from {
				names, err := hostlist.Expand(list[from:i])
				if err != nil {
					return nil, err
				}
				out = append(out, names...)
			}
			from = i + 1
		case list[i] == '[':
			depth++
		case list[i] == ']':
			depth--
		}
	}
	return out, nil
}

const (
	// While something waits the queue is looked at so often at first after it was asked for,
	// and less and less while nothing changes.
	firstLook   = 500 * time.Millisecond
	waitingLook = 10 * time.Second
	// While all runs nothing but agents' connections tells how nodes are, and the queue when
	// jobs end: once in so long. A head that misses a node asks, and is given a look as new
	// as this at first, less and less new when it asks on.
	runningLook = 30 * time.Second
	missedLook  = time.Second
)

// look gives a snapshot that was asked for at since or later.
func (b *Backend) look(ctx context.Context, since time.Time) (*snapshot, error) {
	select {
	case b.looking <- struct{}{}:
		defer func() { <-b.looking }()
	case <-ctx.Done():
		return nil, errs.Wrap(errs.Unknown, context.Cause(ctx), "waiting for squeue")
	}
	b.mu.Lock()
	last, failed, failedAt := b.last, b.failed, b.failedAt
	b.mu.Unlock()
	if failed != nil && !failedAt.Before(since) { // newer than last
		return nil, failed
	}
	if last != nil && !last.at.Before(since) {
		return last, nil
	}
	at := time.Now()
	out, err := b.cli.run(ctx, environment(environ(), nil), "", "squeue", "-h", "-a", "--local", "-S", "i", "-u", strconv.Itoa(os.Getuid()), "-t", "all", "-o", format)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.heard = hearing{}
		if ctx.Err() == nil { // else it was given up before it was answered
			b.failed, b.failedAt = err, time.Now()
			b.every = min(max(2*b.every, time.Second), waitingLook)
		}
		return nil, err
	}
	s := parseQueue(out)
	s.at = at
	b.heard.answered(at, time.Now())
	first, most := firstLook, waitingLook
	same, calm := s.same(b.last)
	if calm {
		first, most = missedLook, b.calmLook
	}
	if same && (!calm || s.at.Sub(b.last.at) < b.calmLook) {
		b.every = min(max(2*b.every, first), most)
	} else {
		b.every = first
	}
	b.last, b.failed, b.calm = s, nil, calm
	return s, nil
}

// same compares our jobs in two snapshots; calm says that none of them waits.
func (s *snapshot) same(old *snapshot) (same, calm bool) {
	same, calm = old != nil, true
	for name, es := range s.byName {
		if !strings.HasPrefix(name, "launcher-") {
			continue
		}
		for i, e := range es {
			calm = calm && !waiting(e.state)
			same = same && i < len(old.byName[name]) && old.byName[name][i].state == e.state && old.byName[name][i].nodes == e.nodes
		}
	}
	return same, calm
}

// soon has the queue looked at again before long.
func (b *Backend) soon() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.every, b.calm, b.asked = firstLook, false, time.Now()
}

// rest waits until a look may tell more of what was asked for last than that it waits.
func (b *Backend) rest(ctx context.Context) {
	b.mu.Lock()
	t := time.NewTimer(time.Until(b.asked.Add(firstLook)))
	b.mu.Unlock()
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// young is how old a snapshot may be: for the head, who asks when it misses a node, and for
// whoever only watches.
func (b *Backend) young() (asked, watched time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.calm && b.failed == nil {
		return b.every, b.calmLook
	}
	return b.every, b.every
}

// nextLook is when a watcher should look though nobody has asked.
func (b *Backend) nextLook() time.Duration {
	_, most := b.young()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == nil || b.failed != nil {
		return most
	}
	return max(time.Until(b.last.at.Add(most)), firstLook)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
