// Package fake is a backend without machines: it grants nodes in memory, tells the truth
// about them, and fails on request. It is held to the same laws as the real ones, so that
// what is tested with it works with them.
//
// A World is what the backend talks to, the queue or the machines; each Backend of it is
// one process's connection.
package fake

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
)

// Name is the backend's name.
const Name = "fake"

// Script is what goes wrong, and when. It can be given to a World, or as a pool's options
// with the keys in parentheses, durations as "150ms".
type Script struct {
	SubmitError errs.Kind     // (submit_error, the kind's name) the first submissions fail with it
	Failures    int           // (failures) how many; 0 with SubmitError = all
	Delay       time.Duration // (delay) every call takes so long
	Pending     time.Duration // (pending) an allocation waits so long
	DiesAfter   time.Duration // (dies_after) it fails so long after its submission
	LostAfter   time.Duration // (lost_after) it is lost so long after its submission
	HalfMade    bool          // (half_made) a failing submission has made the allocation all the same: its answer was lost
}

// World is the state that outlives any one Backend.
type World struct {
	// Start and Stop, if set, are called for each node that begins and ends, so that a
	// test can run something in its place. They must not call back.
	Start func(r backends.Request, i int)
	Stop  func(id wire.NodeID)

	mu      sync.Mutex
	script  Script            // guarded by mu, as is all below
	allocs  map[string]*alloc // by token
	failed  int
	changed chan struct{} // closed and replaced when anything changes
}

type alloc struct {
	handle
	nodes     []wire.NodeID
	submitted time.Time
	script    Script
	ended     *backends.Status // by Cancel or Kill; the script's ends are computed
	dead      map[wire.NodeID]bool
	stopped   map[wire.NodeID]bool
}

type handle struct {
	Fake  int    `json:"fake"` // version
	Token string `json:"token"`
}

// NewWorld makes an empty world in which nothing goes wrong.
func NewWorld() *World {
	return &World{allocs: map[string]*alloc{}, changed: make(chan struct{})}
}

// Script changes what goes wrong from now on.
func (w *World) Script(s Script) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.script, w.failed = s, 0
	w.tell()
}

// Kill ends one node without asking anybody, as a power cut would. An allocation all of
// whose nodes are dead is lost.
func (w *World) Kill(id wire.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.allocs {
		if slices.Contains(a.nodes, id) && w.at(a, time.Now()).State < backends.Done {
			a.dead[id] = true
			if len(a.dead) == len(a.nodes) {
				a.ended = &backends.Status{State: backends.Lost, Why: "all its nodes are dead"}
			}
			w.stop(a, id)
		}
	}
	w.tell()
}

// Nodes is how many nodes live.
func (w *World) Nodes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, a := range w.allocs {
		if w.at(a, time.Now()).State < backends.Done {
			n += len(a.nodes) - len(a.dead)
		}
	}
	return n
}

// tell wakes whoever watches; mu must be held.
func (w *World) tell() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// stop calls Stop once for a node; mu must be held.
func (w *World) stop(a *alloc, id wire.NodeID) {
	if !a.stopped[id] {
		a.stopped[id] = true
		if w.Stop != nil {
			w.Stop(id)
		}
	}
}

// at is the state of a at a time; mu must be held.
func (w *World) at(a *alloc, now time.Time) backends.Status {
	if a.ended != nil {
		return *a.ended
	}
	age := now.Sub(a.submitted)
	st := backends.Status{State: backends.Running}
	switch s := a.script; {
	case s.LostAfter > 0 && age >= s.LostAfter:
		st = backends.Status{State: backends.Lost, Why: "the script lost it"}
	case s.DiesAfter > 0 && age >= s.DiesAfter:
		st = backends.Status{State: backends.Failed, Why: "the script let it die"}
	case age < s.Pending:
		st = backends.Status{State: backends.Pending, Why: "Priority"}
	default:
		st.DeadNodes = slices.Sorted(maps.Keys(a.dead))
	}
	if st.State.Ended() {
		a.ended = &st
		for _, id := range a.nodes {
			w.stop(a, id)
		}
	}
	return st
}

// next is when the script changes the state of a by itself; zero = never.
func (a *alloc) next(now time.Time) (at time.Time) {
	for _, d := range []time.Duration{a.script.Pending, a.script.DiesAfter, a.script.LostAfter} {
		if t := a.submitted.Add(d); d > 0 && t.After(now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	return at
}

// Backend is one connection to a World.
type Backend struct{ w *World }

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Watcher = (*Backend)(nil)
)

// New connects to a world.
func New(w *World) *Backend { return &Backend{w} }

// Capabilities are those of a batch system with a shared file system.
func (b *Backend) Capabilities() backends.Capabilities {
	return backends.Capabilities{Name: Name, SharedFS: true, Cancellable: true, MaxPerCall: 64,
		DefaultMin: func(backends.Options) int { return 0 },
		Limit: func(o backends.Options) (int, string) {
			n, _ := o["limit"].(int64)
			return int(n), fmt.Sprintf("the option limit is %d", n)
		}}
}

var optionKeys = []string{"submit_error", "failures", "delay", "pending", "dies_after", "lost_after", "half_made", "limit"}

// parse reads options over a script; it gives every fault.
func parse(s Script, o backends.Options) (Script, []backends.Fault) {
	var faults []backends.Fault
	fault := func(k, format string, args ...any) {
		faults = append(faults, backends.Fault{Key: k, Msg: fmt.Sprintf(format, args...)})
	}
	for _, k := range slices.Sorted(maps.Keys(o)) {
		v := o[k]
		switch k {
		case "submit_error":
			name, _ := v.(string)
			kind := errs.Invalid
			for kind = range errs.Fenced + 1 {
				if kind.String() == name {
					break
				}
			}
			if kind.String() != name {
				fault(k, "%v is not a kind of error; give a name such as %q", v, errs.Unavailable)
			}
			s.SubmitError = kind
		case "failures", "limit":
			n, err := strconv.Atoi(fmt.Sprint(v))
			if err != nil || n < 0 {
				fault(k, "%v is not a number; give 0 or more", v)
			}
			if k == "failures" {
				s.Failures = n
			}
		case "half_made":
			yes, ok := v.(bool)
			if !ok {
				fault(k, "%v is neither true nor false", v)
			}
			s.HalfMade = yes
		case "delay", "pending", "dies_after", "lost_after":
			text, _ := v.(string)
			d, err := time.ParseDuration(text)
			if err != nil || d < 0 {
				fault(k, "%v is not a duration; give one such as \"150ms\"", v)
			}
			switch k {
			case "delay":
				s.Delay = d
			case "pending":
				s.Pending = d
			case "dies_after":
				s.DiesAfter = d
			default:
				s.LostAfter = d
			}
		default:
			fault(k, "not a key of a fake pool; there are %v", optionKeys)
		}
	}
	return s, faults
}

// Check reads a pool's options.
func (b *Backend) Check(o backends.Options) []backends.Fault {
	_, faults := parse(Script{}, o)
	return faults
}

// slow takes the script's time over a call.
func (w *World) slow(ctx context.Context, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return errs.Wrap(errs.Unknown, err, "fake")
	}
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return errs.Wrap(errs.Unknown, context.Cause(ctx), "fake is slow")
	}
}

func (w *World) current() Script {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.script
}

// Submit makes one allocation of all nodes.
func (b *Backend) Submit(ctx context.Context, r backends.Request) ([]backends.Alloc, error) {
	s, faults := parse(b.w.current(), r.Options)
	if len(faults) > 0 {
		return nil, errs.New(errs.Invalid, "pool %s: %s: %s", r.Pool, faults[0].Key, faults[0].Msg)
	}
	if err := b.w.slow(ctx, s.Delay); err != nil {
		return nil, err
	}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	if a := b.w.allocs[r.Token]; a != nil {
		return []backends.Alloc{a.alloc()}, nil
	}
	fails := s.SubmitError != errs.Unknown && (s.Failures == 0 || b.w.failed < s.Failures)
	if fails {
		b.w.failed++
	}
	if !fails || s.HalfMade {
		a := &alloc{handle: handle{1, r.Token}, nodes: slices.Clone(r.Nodes), submitted: time.Now(), script: s,
			dead: map[wire.NodeID]bool{}, stopped: map[wire.NodeID]bool{}}
		b.w.allocs[r.Token] = a
		for i := range r.Nodes {
			if b.w.Start != nil {
				b.w.Start(r, i)
			}
		}
		b.w.tell()
		if !fails {
			return []backends.Alloc{a.alloc()}, nil
		}
	}
	return nil, errs.New(s.SubmitError, "fake: the submission failed, as the script says")
}

func (a *alloc) alloc() backends.Alloc {
	h, _ := json.Marshal(a.handle)
	return backends.Alloc{Token: a.Token, Handle: h, Nodes: slices.Clone(a.nodes)}
}

// Find looks allocations up.
func (b *Backend) Find(ctx context.Context, cluster string, tokens []string) (map[string][]backends.Alloc, error) {
	if err := b.w.slow(ctx, b.w.current().Delay); err != nil {
		return nil, err
	}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	out := map[string][]backends.Alloc{}
	for _, t := range tokens {
		if a := b.w.allocs[t]; a != nil {
			out[t] = []backends.Alloc{a.alloc()}
		}
	}
	return out, nil
}

// get finds the allocation of a handle; mu must be held.
func (w *World) get(h []byte) *alloc {
	var v handle
	if json.Unmarshal(h, &v) != nil || v.Fake != 1 {
		return nil
	}
	return w.allocs[v.Token]
}

// Status tells the state of each allocation.
func (b *Backend) Status(ctx context.Context, handles [][]byte) ([]backends.Status, error) {
	if err := b.w.slow(ctx, b.w.current().Delay); err != nil {
		return nil, err
	}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	out := make([]backends.Status, len(handles))
	for i, h := range handles {
		if a := b.w.get(h); a != nil {
			out[i] = b.w.at(a, time.Now())
		} else {
			out[i] = backends.Status{State: backends.Lost, Why: "never heard of it"}
		}
	}
	return out, nil
}

// Cancel ends allocations at once.
func (b *Backend) Cancel(ctx context.Context, handles [][]byte) error {
	if err := b.w.slow(ctx, b.w.current().Delay); err != nil {
		return err
	}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	for _, h := range handles {
		if a := b.w.get(h); a != nil && !b.w.at(a, time.Now()).State.Ended() {
			a.ended = &backends.Status{State: backends.Done, Why: "cancelled"}
			for _, id := range a.nodes {
				b.w.stop(a, id)
			}
		}
	}
	b.w.tell()
	return nil
}

// Watch tells of every change.
func (b *Backend) Watch(ctx context.Context, handles [][]byte, changed chan<- int) error {
	type seen struct {
		state backends.AllocState
		dead  int
	}
	last := make([]seen, len(handles))
	for {
		b.w.mu.Lock()
		wait := b.w.changed
		now := time.Now()
		var next time.Time
		var news []int
		for i, h := range handles {
			s := seen{state: backends.Lost}
			if a := b.w.get(h); a != nil {
				st := b.w.at(a, now)
				s = seen{st.State, len(a.dead)}
				if t := a.next(now); !t.IsZero() && (next.IsZero() || t.Before(next)) {
					next = t
				}
			}
			if s != last[i] {
				last[i] = s
				news = append(news, i)
			}
		}
		b.w.mu.Unlock()
		for _, i := range news {
			select {
			case changed <- i:
			case <-ctx.Done():
				return nil
			}
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-wait:
		case <-timer:
		case <-ctx.Done():
			return nil
		}
	}
}

// DryRun writes the request as it would be made.
func (b *Backend) DryRun(r backends.Request, w io.Writer) error {
	if _, faults := parse(Script{}, r.Options); len(faults) > 0 {
		return errs.New(errs.Invalid, "pool %s: %s: %s", r.Pool, faults[0].Key, faults[0].Msg)
	}
	_, err := fmt.Fprintf(w, "fake submit --token %s --nodes %v --key (the join key)\n", r.Token, r.Nodes)
	return err
}

// Close forgets nothing: the world goes on.
func (b *Backend) Close() error { return nil }
