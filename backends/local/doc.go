// Package local grants nodes on this machine: one detached `launcher node` each, with
// its share of the machine's cores and memory.
//
// What it knows it keeps in files, so that another process (a head that was restarted)
// finds everything again. In clusters/NAME/nodes, for a node ID in its life EPOCH:
//
//	ID/              the node's own directory: agent.sock, spool/, agent.log
//	ID.EPOCH.json    the allocation: token, pid, start time; written before the node reads its configuration
//	ID.EPOCH.stop    it was cancelled
//	ID.EPOCH.end     how it ended; the first to know writes it, and it never changes
//
// A node is started in two steps: its process waits for its configuration on standard
// input, and gets it only when the allocation is on disk. So a caller that dies in
// between leaves a process that reads the end of its input and goes away by itself.
package local

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
)

// Name is the backend's name in a spec.
const Name = "local"

// maxNodes bounds what a machine is divided into, whatever its nodes claim to have.
const maxNodes = 1024

// headlessBound is how long a node's processes may outlive its guard.
const headlessBound = 3 * time.Second

// Backend starts agents on this machine.
type Backend struct {
	home string
	// termBound is how long a node may take to end in order before it is killed, and
	// killBound how long after that its processes may be seen.
	termBound, killBound time.Duration

	starting sync.Mutex // one Submit at a time

	mu       sync.Mutex
	children map[string]chan struct{} // by allocation; closed when our child's end is on disk; guarded by mu
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Watcher = (*Backend)(nil)
	_ backends.Bounder = (*Backend)(nil)
)

// New makes the backend for the state directory home ($LAUNCHER_HOME).
func New(home string) *Backend {
	return &Backend{home: home, termBound: 30 * time.Second, killBound: 10 * time.Second, children: map[string]chan struct{}{}}
}

// Capabilities are the same on every machine.
func (b *Backend) Capabilities() backends.Capabilities {
	return backends.Capabilities{
		Name: Name, Releasable: true, SharedFS: true, Cancellable: true,
		DefaultMin: func(o backends.Options) int { n, _ := nodesOf(o); return n },
		Limit:      func(o backends.Options) (int, string) { return b.Bound(o, nil) },
	}
}

// NodesKey is the option that sets how many nodes a pool has.
func (b *Backend) NodesKey() string { return "nodes" }

// nodesOf reads the one option there is.
func nodesOf(o backends.Options) (int, error) {
	v, ok := o["nodes"]
	if !ok {
		return 1, nil
	}
	n := int64(-1)
	switch v := v.(type) {
	case int64:
		n = v
	case int:
		n = int64(v)
	case uint64:
		n = int64(min(v, 1<<40))
	}
	if n < 1 || n > maxNodes {
		return 1, fmt.Errorf("%v is not a number of nodes; give 1 to %d", v, maxNodes)
	}
	return int(n), nil
}

// Check finds what is wrong with a pool's own keys.
func (b *Backend) Check(o backends.Options) []backends.Fault {
	var faults []backends.Fault
	for k := range o {
		if k != "nodes" {
			faults = append(faults, backends.Fault{Key: k, Msg: `not a key of a local pool; its own key is "nodes"`})
		}
	}
	if _, err := nodesOf(o); err != nil {
		faults = append(faults, backends.Fault{Key: "nodes", Msg: err.Error()})
	}
	return faults
}

// Bound is one node for each core, since each is to have a core of its own; nodes that
// say themselves what they have may be more, and share.
func (b *Backend) Bound(o backends.Options, per *wire.Resources) (int, string) {
	n, err := nodesOf(o)
	if err != nil {
		return 1, err.Error()
	}
	if per != nil {
		return maxNodes, fmt.Sprintf("a machine is divided into at most %d nodes", maxNodes)
	}
	return min(n, len(usableCores())), tooMany(n)
}

func tooMany(n int) string {
	c := len(usableCores())
	if n <= c {
		return fmt.Sprintf("the pool has %s", plural(n, "node"))
	}
	return fmt.Sprintf("%s on a machine with %s usable; give at most %d, or say in `resources` what each node has, then they share cores",
		plural(n, "node"), plural(c, "core"), c)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// Close forgets; nodes run on.
func (b *Backend) Close() error { return nil }

// Find looks allocations up by token.
func (b *Backend) Find(ctx context.Context, cluster string, tokens []string) (map[string][]backends.Alloc, error) {
	wanted := map[string]bool{}
	for _, t := range tokens {
		wanted[t] = true
	}
	found := map[string][]backends.Alloc{}
	recs, err := readRecords(b.nodesDir(b.home, cluster))
	if err != nil {
		return nil, err
	}
	for _, r := range recs {
		if wanted[r.Token] && r.PID > 0 {
			found[r.Token] = append(found[r.Token], r.alloc())
		}
	}
	return found, ctx.Err()
}

func (b *Backend) nodesDir(home, cluster string) string {
	return filepath.Join(home, "clusters", cluster, "nodes")
}

// Status tells by the process and by what is on disk.
func (b *Backend) Status(ctx context.Context, handles [][]byte) ([]backends.Status, error) {
	out := make([]backends.Status, len(handles))
	for i, h := range handles {
		r, ok := parseHandle(h)
		if !ok {
			out[i] = backends.Status{State: backends.Lost, Why: "not an allocation of this backend"}
			continue
		}
		out[i] = b.status(ctx, r)
	}
	return out, nil
}

func (b *Backend) status(ctx context.Context, r record) backends.Status {
	if end, ok := r.readEnd(); ok {
		return end.status()
	}
	if _, err := os.Stat(r.path(".json")); err != nil {
		return backends.Status{State: backends.Lost, Why: "nothing is known of it on this machine"}
	}
	if r.alive() {
		why := r.Why
		if r.stopped() {
			why = "it is being ended"
		}
		return backends.Status{State: backends.Running, Why: why}
	}
	// Our own child: its exit status is about to be known.
	b.mu.Lock()
	ended := b.children[r.key()]
	b.mu.Unlock()
	if ended != nil {
		select {
		case <-ended:
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return r.writeEnd(r.verdict(nil)).status()
}

// Cancel ends nodes: their guards are told to, and killed when they do not within the
// bound. It returns when no process of theirs is left.
func (b *Backend) Cancel(ctx context.Context, handles [][]byte) error {
	var open []record
	for _, h := range handles {
		r, ok := parseHandle(h)
		if !ok {
			continue
		}
		if _, ended := r.readEnd(); ended && len(r.marked()) == 0 {
			continue
		}
		if err := r.markStopped(); err != nil {
			return err
		}
		r.signal(false)
		open = append(open, r)
	}
	return b.awaitEnds(ctx, open, b.termBound)
}

// awaitEnds waits until no process of the allocations is left, kills what is left after
// term, and writes their ends down.
func (b *Backend) awaitEnds(ctx context.Context, open []record, term time.Duration) error {
	killAt := time.Now().Add(term)
	giveUp := killAt.Add(b.killBound)
	headless := map[string]time.Time{} // since when a guard is dead and something below it is not
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		kill := time.Now().After(killAt)
		left := open[:0:0]
		for _, r := range open {
			if r.alive() {
				if kill {
					r.signal(true)
				}
				left = append(left, r)
			} else if rest := r.marked(); len(rest) > 0 {
				// What is below a dead guard ends by itself within a second; what does not is killed.
				since, ok := headless[r.key()]
				if !ok {
					since = time.Now()
					headless[r.key()] = since
				}
				if kill || time.Since(since) > headlessBound {
					killAll(rest)
				}
				left = append(left, r)
			} else {
				b.status(ctx, r)
			}
		}
		if open = left; len(open) == 0 {
			return nil
		}
		if time.Now().After(giveUp) {
			return errs.New(errs.Timeout, "%s on this machine cannot be killed: process %d is still there", open[0].Node, open[0].PID).
				Hint("a process that hangs in the kernel (a dead network file system, a driver) cannot be ended; look at /proc/%d/stack", open[0].PID)
		}
		select {
		case <-ctx.Done():
			return errs.Wrap(errs.Unknown, context.Cause(ctx), "ending %s", open[0].Node)
		case <-time.After(wait):
		}
	}
}

// Watch tells of ends at once, by descriptors of the processes where the kernel has them.
func (b *Backend) Watch(ctx context.Context, handles [][]byte, changed chan<- int) error {
	recs := make([]*record, len(handles))
	for i, h := range handles {
		if r, ok := parseHandle(h); ok {
			recs[i] = &r
		}
	}
	return watch(ctx, recs, func(i int) bool {
		select {
		case changed <- i:
			return true
		case <-ctx.Done():
			return false
		}
	})
}

// DryRun writes the commands that Submit would run, and what each would read.
func (b *Backend) DryRun(r backends.Request, w io.Writer) error {
	plans, err := b.plan(r)
	if err != nil {
		return err
	}
	for _, p := range plans {
		fmt.Fprintf(w, "# node %s: %s\n", p.rec.Node, p.share)
		fmt.Fprintf(w, "mkdir -p -m 700 %s\n", quote(p.cfg.Dir))
		fmt.Fprintf(w, "cd / && %s=%s setsid %s node < CONFIG >> %s 2>&1 &\n", markVar, quote(p.rec.mark()), quote(r.Binary), quote(filepath.Join(p.cfg.Dir, "agent.log")))
		fmt.Fprintf(w, "# CONFIG is msgpack through a pipe, never a file:\n%s\n", p.describe())
	}
	return nil
}

func quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:,@%", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
